"""Help is fast because it imports nothing heavy, and it shows by example."""

import os
import subprocess
import sys

from laws import looped

COMMANDS = [
    *(("demo",), ("train", "target"), ("train", "inverter"), ("defend",), ("attack",)),
    *(("codebook",), ("certify",), ("choose",), ("export",), ("doctor",)),
    *(("reproduce",), ("results",), ("serve",), ("playground",)),
]


@looped("command", COMMANDS)
def test_help_of_a_command_shows_an_example(oneway, command):
    result = oneway(*command, "--help")
    assert result.exit_code == 0
    assert f"oneway {' '.join(command)}" in result.stdout.split("For example:")[1]


def test_help_imports_neither_torch_nor_numpy():
    """Of any command: one process asks for all of them, one after the other."""
    script = (
        "import sys\n"
        "from oneway.cli.main import app\n"
        f"for command in {[(), *COMMANDS]!r}:\n"
        "    try:\n"
        "        app([*command, '--help'])\n"
        "    except SystemExit as stop:\n"
        "        heavy = {'torch', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "        if stop.code or heavy:\n"
        "            sys.exit(f'{command}: exit code {stop.code}, imports {heavy}')\n"
    )
    done = subprocess.run(  # noqa: S603  our own interpreter and script
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == 1 + len(COMMANDS)


def test_help_ends_on_an_output_of_ascii_alone():
    """As in a container without a locale; a cut column ends in an ellipsis, which ASCII lacks."""
    script = "from oneway.cli.main import app; app(['train', 'inverter', '--help'])"
    done = subprocess.run(  # noqa: S603  our own interpreter and script
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"--seed" in done.stdout
    assert b"?" in done.stdout


def test_version_is_the_packages(oneway):
    import oneway as package

    assert oneway("--version").stdout.strip() == f"oneway {package.__version__}"

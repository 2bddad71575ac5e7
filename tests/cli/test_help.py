"""Help is fast because it imports nothing heavy, and it shows by example."""

import subprocess
import sys

import pytest

COMMANDS = [
    *(("demo",), ("train", "target"), ("train", "inverter"), ("defend",), ("attack",)),
    *(("codebook",), ("certify",), ("choose",), ("export",), ("doctor",)),
    *(("reproduce",), ("results",), ("serve",), ("playground",)),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_a_command_shows_an_example(oneway, command):
    result = oneway(*command, "--help")
    assert result.exit_code == 0
    assert f"oneway {' '.join(command)}" in result.stdout.split("For example:")[1]


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=lambda parts: " ".join(parts) or "oneway")
def test_help_imports_neither_torch_nor_numpy(command):
    script = (
        "import sys\n"
        "from oneway.cli.main import app\n"
        "try:\n"
        f"    app({[*command, '--help']!r})\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "    sys.exit(stop.code or (f'imports {heavy}' if heavy else 0))\n"
    )
    done = subprocess.run(  # noqa: S603  our own interpreter and script
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_version_is_the_packages(oneway):
    import oneway as package

    assert oneway("--version").stdout.strip() == f"oneway {package.__version__}"

"""Help is fast because it imports nothing heavy, and it shows by example."""

import functools
import os
import re
import subprocess
import sys

from fences import check_command, commands_of
from invoking import all_commands
from laws import looped
from oneway.attacks import identification_attacks, inversion_attacks


def names_of(group):
    """Yield every command's words."""
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from ((name, *words) for words in names_of(command))
        else:
            yield (name,)


def options_of(words):
    """Return the options of the command of these words, as they are typed."""
    command = functools.reduce(lambda group, name: group.commands[name], words, all_commands())
    params = command.params
    return {name for each in params for name in (*each.opts, *each.secondary_opts) if "--" in name}


COMMANDS = list(names_of(all_commands()))


EVERY = [(), *COMMANDS]

AUDIT = 'model = "model.pt"\nattacker-data = "own.npz"\nqueries = "queries.npz"\n'


@looped("command", COMMANDS)
def test_examples_can_be_copied_out_of_the_help_of_a_narrow_terminal(
    oneway, command, tmp_path, monkeypatch
):
    """As a reader copies them: lines as they stand at 80 columns, parsed by the command itself."""
    result = oneway(*command, "--help", env={"COLUMNS": "80"})
    assert result.exit_code == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit.toml").write_text(AUDIT, encoding="utf-8")
    shown = set(re.findall(r"[\w-]+", result.stdout))
    assert not (cut := options_of(command) - shown), cut
    examples = commands_of(result.stdout.split("For example:")[1])
    assert examples
    for words in examples:
        plain = words[1:] if words[0] == "RAY_ADDRESS=auto" else words
        assert plain[: 1 + len(command)] == ["oneway", *command]
        check_command(plain)


def test_help_imports_neither_torch_nor_numpy():
    """Of any command: one process asks for all of them, one after the other."""
    script = (
        "import sys\n"
        "from oneway.cli.main import app\n"
        f"for command in {EVERY!r}:\n"
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
    assert done.stdout.count("Usage: ") == len(EVERY)


def test_the_help_of_an_audit_names_every_attacker_of_the_registry(oneway):
    attacks = [attack for attack in inversion_attacks().values() if attack.by_default]
    named = (*attacks, *identification_attacks().values())
    lines = "; ".join(f"{attack.name}: {attack.knows}" for attack in named)
    shown = oneway("audit", "--help", env={"COLUMNS": "2000"}).stdout
    assert f"Attackers, and what each knows: {lines}." in " ".join(shown.split())


def test_help_ends_on_an_output_of_ascii_alone():
    """As in a container without a locale; a cut column ends in an ellipsis, which ASCII lacks."""
    script = "from oneway.cli.main import app; app(['train', 'inverter', '--help'])"
    done = subprocess.run(  # noqa: S603  our own interpreter and script
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "50"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"--seed" in done.stdout
    assert b"?" in done.stdout


def test_version_is_the_packages(oneway):
    import oneway as package

    assert oneway("--version").stdout.strip() == f"oneway {package.__version__}"

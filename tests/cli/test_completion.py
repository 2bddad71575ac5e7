"""What shells complete: names of the registries, read without torch."""

import subprocess
import sys

import pytest

from invoking import all_commands
from oneway.benchmark import bundled_spec
from oneway.data.datasets import DATASETS
from oneway.defenses import DEFENSES, TEST_SIGNALS
from oneway.inversion import INPUT_TRANSFORMS, INVERTER_WIDTHS
from oneway.targets import TARGET_PRESETS


def parameter_of(words, option):
    """Return the command that words name, and its option."""
    command = all_commands()
    for word in words:
        command = command.commands[word]
    found = [each for each in command.params if option in each.opts]
    return command, found[0]


def completed(line, incomplete=""):
    """Return what is offered after ``line``, whose last word is an option."""
    *words, option = line.split()
    names = [word for word in words if word in ("train", "target", "inverter")] or words[:1]
    command, parameter = parameter_of(names, option)
    context = command.make_context(
        "oneway", words[len(names) :], resilient_parsing=True, ignore_unknown_options=True
    )
    return [each.value for each in parameter.shell_complete(context, incomplete)]


def test_defenses_are_completed_from_the_registry():
    known = [name for name in DEFENSES if name not in TEST_SIGNALS]
    for command in ("audit", "defend", "serve"):
        assert completed(f"{command} --defense") == known
    assert completed("audit --defense", "top-") == ["top-rounding", "top-k"]
    assert completed("audit --defense", "x") == []


def test_rows_and_presets_are_those_of_the_experiment(tmp_path, monkeypatch):
    rows = [row.name for row in bundled_spec("table2-mnist", "cpu").releases]
    assert completed("reproduce table2 --release") == rows
    assert set(completed("reproduce table2 --preset")) == {"cpu", "paper"}
    board = [row.name for row in bundled_spec("leaderboard", "digits").releases]
    assert completed("leaderboard --release") == board
    assert "smoothed" in completed("leaderboard --data", "s")
    own = tmp_path / "own.toml"
    own.write_text('[[releases]]\nname = "mine, 2"\n[presets.quick]\n', encoding="utf-8")
    assert completed(f"leaderboard {own} --release") == ["mine, 2"]
    assert completed(f"reproduce {own} --preset") == ["quick"]
    monkeypatch.setenv("_ONEWAY_COMPLETE", "complete_bash")
    assert completed(f"leaderboard {own} --release", "mi") == [r"mine,\ 2"]
    for damaged in ("[[releases", None):
        own.unlink() if damaged is None else own.write_text(damaged, encoding="utf-8")
        assert completed(f"leaderboard {own} --release") == []


CHOICES = {
    "train target --data": DATASETS,
    "train target --preset": TARGET_PRESETS,
    "train inverter --preset": INVERTER_WIDTHS,
    "train inverter --input-transform": INPUT_TRANSFORMS,
    "audit --executor": ("local", "ray"),
    "audit --outputs": ("logits", "confidences"),
}


def test_choices_are_those_of_the_registries(oneway, tmp_path):
    for line, names in CHOICES.items():
        assert sorted(completed(line)) == sorted(names), line
    assert set(completed("codebook --device")) == {"auto", "cpu", "cuda"}
    result = oneway("train", "target", "--out", tmp_path / "no", "--data", "digit")
    assert result.exit_code == 2
    assert "'digits'" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell's variables")
def test_a_shell_gets_names_without_torch():
    script = (
        "import sys\n"
        "from oneway.cli.main import app\n"
        "try:\n    app(prog_name='oneway')\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    line = {"COMP_WORDS": "oneway audit --defense top", "COMP_CWORD": "3"}
    done = subprocess.run(  # noqa: S603  our own interpreter and script
        [sys.executable, "-c", script],
        env=line | {"_ONEWAY_COMPLETE": "complete_bash", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["top-rounding", "top-k"], done.stderr

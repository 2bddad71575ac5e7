"""`oneway audit --config audit.toml`: an audit that is kept beside its model."""

import shlex
from pathlib import Path

import pytest

from laws import looped
from oneway import interface
from oneway.errors import OnewayError
from oneway.interface import ThreatSettings

FILE = """
model = "model.pt"
attacker-data = "data/own.npz"
queries = "data/queries.npz"
outputs = "logits"
defense = "rounding"
option = ["decimals=2"]
minutes = 20
seeds = 2
controls = false
no-images = true
size = "8x8"
classes = "cat,dog"
require-gap = 0.5
out = "report"
"""


@pytest.fixture
def audit(oneway, monkeypatch, tmp_path):
    """Return what runs an audit by a file, up to where its work would begin."""
    asked = []

    def stop(*given, **named):
        asked.append((*given, named))
        raise OnewayError("enough")

    monkeypatch.setattr(interface, "run_audit", stop)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()

    def run(text, *more):
        asked.clear()
        (tmp_path / "kept" / "audit.toml").write_text(text, encoding="utf-8")
        result = oneway("audit", "--config", "kept/audit.toml", *more)
        assert result.exit_code == 2, result.output
        return asked[0] if asked else " ".join(result.stderr.replace("│", " ").split())

    return run


def test_options_of_the_file_are_those_of_the_command_line(audit):
    source, settings, named = audit(FILE)
    kept = Path("kept")
    assert source.model == (str(kept / "model.pt"), {"outputs": "logits"})
    assert (source.auxiliary, source.test) == (kept / "data/own.npz", kept / "data/queries.npz")
    assert (source.release.defense, source.release.options) == ("rounding", {"decimals": 2})
    assert settings == ThreatSettings(seeds=2, minutes=20, controls=False)
    assert source.reading.size == (8, 8)
    assert source.class_names == ("cat", "dog")
    assert named["cache"] == Path("runs/cache")  # a default is relative to the current folder


def test_the_command_line_overrides_the_file(audit):
    more = shlex.split("other.pt --minutes 3 --controls --option decimals=1 --classes a,b,c")
    source, settings, _ = audit(FILE, *more)
    assert source.model[0] == "other.pt"
    assert source.release.options == {"decimals": 1}
    assert settings == ThreatSettings(seeds=2, minutes=3)
    assert source.class_names == ("a", "b", "c")


@looped(
    "model", ["http://host:8000/v2/models/digits", "package.module:factory", "/there/model.onnx"]
)
def test_what_is_no_relative_path_stays(audit, model):
    assert audit(FILE.replace("model.pt", model))[0].model[0] == model


WRONG = {
    "unknown": (FILE + "minuts = 3\n", "unknown option 'minuts'. Did you mean 'minutes'?"),
    "python's name": (FILE + "no_controls = true\n", "unknown option 'no_controls'"),
    "itself": (FILE + 'config = "other.toml"\n', "unknown option 'config'"),
    "kind": (FILE.replace('["decimals=2"]', '"decimals=2"'), "option must be a list of texts"),
    "flag": (FILE.replace("true", '"yes"'), "no-images must be true or false"),
    "path": (FILE.replace('"report"', "3"), "out must be a path as a text"),
    "text": (FILE.replace("20", "[20]"), "minutes must be a text or a number"),
    "number": (FILE.replace("20", '"long"'), "Invalid value for '--minutes'"),
    "choice": (FILE.replace('"logits"', '"scores"'), "Invalid value for '--outputs'"),
    "range": (FILE.replace("seeds = 2", "seeds = 0"), "Invalid value for '--seeds'"),
    "no TOML": ("model = model.pt", "it is no TOML"),
    "missing": (FILE.replace('model = "model.pt"', ""), "Missing argument"),
}


def test_what_a_file_cannot_say_is_refused_by_name(audit):
    for name, (text, message) in WRONG.items():
        said = audit(text)
        assert message in said, (name, said)


def test_a_file_that_is_not_there_is_refused(oneway, tmp_path):
    result = oneway("audit", "--config", tmp_path / "no.toml")
    assert result.exit_code == 2
    assert "No such file" in " ".join(result.stderr.replace("│", " ").split())

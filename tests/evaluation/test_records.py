"""What is kept of a release: numbers that can be read back, and a key of all that decides them."""

import base64
import copy
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.small import LABEL, NAMES, NOISY, NONE, spec_of
from laws import looped
from oneway.benchmark.spec import cell_key, without_later_fields
from oneway.errors import CorruptDataError
from oneway.evaluation import (
    Flag,
    Provenance,
    ReleaseRecord,
    ReleaseSpec,
    read_records,
    records,
    write_records,
)
from oneway.evaluation.records import (
    SCHEMA,
    environment,
    json_values,
    packed,
    source_commit,
    unpacked,
    weights_hash,
)
from oneway.evaluation.store import read_json_lines, write_json_lines
from planted_records import release_record
from typed_values import values_of


@given(st.lists(st.floats(0, 4), max_size=50))
def test_errors_come_back_to_three_digits(errors):
    text = packed(torch.tensor(errors, dtype=torch.float64))
    assert text.isascii()
    back = unpacked(text)
    assert back.shape == (len(errors),)
    # Half a unit in the last place of float16: 11 bits, and 2**-25 below its normal numbers.
    np.testing.assert_allclose(back.astype(np.float64), errors, rtol=2**-11, atol=2**-25)


@given(st.lists(st.integers(0, 2**10), max_size=20))
def test_what_float16_holds_comes_back_exactly(numbers):
    errors = torch.tensor([number / 2**10 for number in numbers], dtype=torch.float64)
    assert unpacked(packed(errors)).tolist() == errors.tolist()


def test_errors_are_little_endian_halves_in_base64():
    text = packed(torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert base64.b64decode(text) == b"\x00\x3c\x00\x38"


def test_options_become_json_values_and_infinity_becomes_text():
    values = {"norm": math.inf, "nested": [1, (2.5, -math.inf)], "name": "a", "none": None}
    plain = json_values(values)
    assert plain == {"norm": "inf", "nested": [1, [2.5, "-inf"]], "name": "a", "none": None}
    json.dumps(plain, allow_nan=False)


def test_the_environment_says_what_a_record_was_made_with():
    made_with = environment(torch.device("cpu"))
    assert (made_with.torch, made_with.device) == (torch.__version__, "cpu")
    assert made_with.threads == torch.get_num_threads()
    assert made_with.processor
    # Summaries list each machine once.
    again, other = environment(torch.device("cpu")), dataclasses.replace(made_with, cores=None)
    assert list(dict.fromkeys((made_with, again, other))) == [made_with, other]


@settings(max_examples=20)
@given(st.lists(values_of(ReleaseRecord, schema=st.just(SCHEMA)), max_size=2))
def test_a_record_that_is_read_back_is_the_record_that_was_written(tmp_path_factory, records):
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    write_records(path, records)
    assert read_records(path) == records
    lines = read_json_lines(path)
    assert [next(iter(values)) for values in lines] == ["schema"] * len(records)
    assert lines == [record.to_json() for record in records]


def test_a_file_that_is_not_there_holds_no_records(tmp_path):
    assert read_records(tmp_path / "absent.jsonl") == []


FLAGGED = release_record(flags=(Flag("attack-failed", "static failed", "static"),)).to_json()


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


@looped(
    ("values", "reason"),
    [
        ({"schema": 1}, "schema 2, but has 1"),
        ({"schema": "2"}, "schema 2, but has '2'"),
        (without(FLAGGED, "schema"), "schema 2, but has 'none'"),
        ({"flips": 3}, "unknown key in the record 'flips'"),
        ({"acuracy": 1.0}, "unknown key in the record 'acuracy'. Did you mean 'accuracy'"),
        (without(FLAGGED, "seed"), "the record lacks the key 'seed'"),
        (without(FLAGGED, "provenance"), "the record lacks the key 'provenance'"),
        ({"seed": "0"}, "the record.seed must be int, but is str"),
        ({"accuracy": None}, "the record.accuracy must be float, but is NoneType"),
        ({"errors": {"static": "0.1"}}, "the record.errors.static must be float, but is str"),
        ({"baselines": {"clean": 1, "label": 2}}, "the record.baselines lacks the key 'prior'"),
        ({"flags": ["labels changed"]}, r"the record.flags\[0\] must be a table, but is str"),
        ({"flags": [{"name": "labels-changd", "detail": ""}]}, "mean 'labels-changed'"),
        ({"environment": {}}, "the record.environment lacks the key 'oneway'"),
    ],
)
def test_what_is_no_record_of_this_form_is_refused_with_file_line_and_remedy(
    tmp_path, values, reason
):
    if not values.keys() >= {"release", "cell"}:
        values = FLAGGED | values
    path = tmp_path / "some.jsonl"
    write_json_lines(path, [FLAGGED, values])
    with pytest.raises(CorruptDataError) as refused:
        read_records(path)
    message = str(refused.value)
    assert message.startswith(f"line 2 of {path} must be ")
    assert re.search(reason, message)
    assert re.search(r" Make it again with this version of oneway( if it is one)?\.$", message)


def test_provenance_is_of_this_moment_in_utc():
    before = datetime.now(UTC).replace(microsecond=0)
    made = Provenance.now("data", None)
    date = datetime.fromisoformat(made.date)
    assert before <= date <= datetime.now(UTC)
    assert date.utcoffset() == timedelta(0)
    assert (made.commit, made.data, made.model) == (source_commit(), "data", None)


GIT = shutil.which("git")
SIGNED = {
    f"GIT_{role}_{what}": "x" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def git(folder, *words):
    command = [GIT, "-C", str(folder), *words]
    done = subprocess.run(  # noqa: S603  our own arguments
        command, env=os.environ | SIGNED, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_the_commit_is_that_of_the_checkout_that_the_source_is_in(tmp_path, monkeypatch):
    folder = tmp_path / "checkout" / "src" / "oneway" / "evaluation"
    folder.mkdir(parents=True)
    source = folder / "records.py"
    source.write_text("one\n", encoding="utf-8")
    monkeypatch.setattr(records, "__file__", str(source))
    fresh = source_commit.__wrapped__
    assert fresh() is None  # an archive of the source
    root = tmp_path / "checkout"
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "First")
    git(root, "tag", "v1")
    head = git(root, "rev-parse", "HEAD")
    assert fresh() == head
    (root / "results.jsonl").write_text("", encoding="utf-8")
    assert fresh() == head  # what is not part of the source makes no difference
    source.write_text("two\n", encoding="utf-8")
    assert fresh() == f"{head}-dirty"
    # Installed into an environment within somebody's checkout: not a revision of oneway.
    installed = root / "venv" / "site-packages" / "oneway" / "evaluation"
    installed.mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(installed / "records.py"))
    assert fresh() is None
    monkeypatch.setattr(records, "__file__", str(source))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert fresh() is None


def test_the_hash_of_a_network_is_of_its_weights_and_buffers():
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    first = weights_hash(network)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert weights_hash(copy.deepcopy(network).eval()) == first
    hashes = {first}
    for name in network.state_dict():
        changed_network = copy.deepcopy(network)
        changed_network.state_dict()[name].view(-1)[-1:] += 1
        hashes.add(weights_hash(changed_network))
    assert len(hashes) == 1 + len(network.state_dict())


SPEC = spec_of(NONE, NOISY, LABEL)


def changed(path, value):
    """Return the spec with one value, named by a path of attributes, changed."""
    *outer, last = path.split(".")
    objects = [SPEC]
    for name in outer:
        objects.append(getattr(objects[-1], name))
    new = dataclasses.replace(objects.pop(), **{last: value})
    for name in reversed(outer):
        new = dataclasses.replace(objects.pop(), **{name: new})
    return new


@looped(
    ("path", "value"),
    [
        ("seed", 1),
        ("data.private", 61),
        ("data.calibration", 10),
        ("data.auxiliary_path", "other.npz"),
        ("target.width", 8),
        ("target.training.epochs", 2),
        ("surrogate.hidden_layers_removed", 0),
        ("surrogate.training.schedule", "one-cycle"),
        ("attackers.widths", (8,)),
        ("attackers.held_out", 0.5),
        ("attackers.step_factors", (1.0,)),
        ("attackers.training.grace", 9),
        ("attackers.most_epochs", 5),
    ],
)
def test_a_cells_key_depends_on_every_setting_of_the_experiment(path, value):
    assert cell_key(changed(path, value), NOISY) != cell_key(SPEC, NOISY)


@looped(
    ("field", "value"),
    [
        ("name", "other"),
        ("defense", "input-free-noise"),
        ("options", {"step_size": 0.25}),
        ("surrogate", "min-max"),
        ("attackers", ("static",)),
    ],
)
def test_a_cells_key_depends_on_every_setting_of_its_release(field, value):
    assert cell_key(SPEC, dataclasses.replace(NOISY, **{field: value})) != cell_key(SPEC, NOISY)


def test_fields_that_came_later_leave_the_keys_of_older_records():
    values = dataclasses.asdict(SPEC)
    assert values["target"]["training"].pop("schedule") == "one-cycle"
    assert values["surrogate"].pop("removed") == "first"
    assert without_later_fields(dataclasses.asdict(SPEC)) == json_values(values)
    for path, value in (("target.training.schedule", "constant"), ("surrogate.removed", "last")):
        assert cell_key(changed(path, value), NOISY) != cell_key(SPEC, NOISY)


def test_a_cells_key_depends_on_nothing_else():
    key = cell_key(SPEC, NOISY)
    more = dataclasses.replace(SPEC, releases=(*SPEC.releases, ReleaseSpec("more", "none")))
    for spec in (more, changed("name", "renamed"), changed("preset", "cpu")):
        assert cell_key(spec, NOISY) == key
    # Who attacks counts, and not whether the release or the experiment says it.
    assert cell_key(SPEC, dataclasses.replace(NOISY, attackers=NAMES)) == key
    own = dataclasses.replace(NOISY, attackers=("label-only", "static"))
    fewer = changed("attackers.names", ("label-only", "static"))
    assert cell_key(fewer, own) == cell_key(SPEC, own) == cell_key(fewer, NOISY) != key

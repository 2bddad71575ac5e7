"""What is kept of a release: numbers that can be read back, and a key of all that decides them."""

import base64
import dataclasses
import json
import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.small import LABEL, NAMES, NOISY, NONE, spec_of
from laws import looped
from oneway.benchmark.spec import cell_key
from oneway.evaluation.records import environment, json_values, packed, unpacked
from oneway.evaluation.settings import ReleaseSpec


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
    found = vars(environment(torch.device("cpu")))
    assert (found["torch"], found["device"]) == (torch.__version__, "cpu")
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]
    json.dumps(found)


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


def test_a_cells_key_is_what_it_was_before_queries_were_kept_where_none_are():
    """By a key that was written before experiments could keep any."""
    assert SPEC.data.calibration == 0
    assert cell_key(SPEC, NOISY) == "7ed6f8dff29dd91db2f8"
    # And where some are kept, how many decides.
    kept = {cell_key(changed("data.calibration", count), NOISY) for count in (1, 2)}
    assert len(kept | {cell_key(SPEC, NOISY)}) == 3


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

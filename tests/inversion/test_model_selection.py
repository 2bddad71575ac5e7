"""Laws of the contest between decoders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneway.inversion import DecoderSpec, decoder_grid, train_each

ERRORS = st.integers(1, 9).map(lambda tenths: tenths / 10)
RUNS = st.lists(st.lists(ERRORS, min_size=1, max_size=4), min_size=1, max_size=6)
SPECS = [DecoderSpec("faithful", width) for width in range(1, 7)]


def hold(runs):
    """Hold a contest whose decoders are their places; return also the leaders they were given."""
    leaders = []

    def fit(spec, incumbent):
        leaders.append(list(incumbent))
        place = SPECS.index(spec)
        return place, runs[place]

    return train_each(SPECS[: len(runs)], fit), leaders


@given(RUNS)
def test_each_is_paced_by_the_best_before_it(runs):
    _, leaders = hold(runs)
    assert leaders[0] == []
    for place in range(1, len(runs)):
        assert leaders[place] == min(runs[:place], key=min)


@given(RUNS)
def test_every_entry_is_reported_in_order(runs):
    trials, _ = hold(runs)
    assert [trial.spec for trial in trials] == SPECS[: len(runs)]
    assert [trial.decoder for trial in trials] == list(range(len(runs)))
    assert [trial.held_out_errors for trial in trials] == runs
    assert [trial.best_error for trial in trials] == [min(errors) for errors in runs]


def test_a_contest_without_decoders_is_refused():
    with pytest.raises(ValueError, match="at least one decoder"):
        train_each([], lambda *_: (None, []))


@given(
    st.lists(st.sampled_from(["faithful", "standardized"]), min_size=1, max_size=2, unique=True),
    st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True),
)
def test_the_grid_has_each_pair_once_the_likely_winner_first(input_transforms, widths):
    grid = decoder_grid(input_transforms, widths)
    pairs = [(spec.input_transform, spec.width) for spec in grid]
    assert sorted(pairs) == sorted((end, width) for end in input_transforms for width in widths)
    robust = [end for end, _ in pairs]
    assert robust == sorted(robust, reverse=True)  # "standardized" stands before "faithful"
    for end in input_transforms:
        ordered = [width for other, width in pairs if other == end]
        assert ordered == sorted(widths, reverse=True)

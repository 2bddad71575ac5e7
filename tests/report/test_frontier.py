"""The frontier holds exactly the releases that no other beats."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from oneway.benchmark import Estimate, Summary
from oneway.report.frontier import frontier, frontier_lines


def release(name, gap, moved, logits=1.0):
    values = {"closed_gap": gap, "l1_mean": moved, "logit_distortion": logits}
    known = {key: Estimate(value, None, 1) for key, value in values.items() if value is not None}
    return Summary(name, (0,), known, 0, {}, {"release": name})


LEVEL = st.integers(0, 6).map(lambda level: level / 4)


@given(st.lists(st.tuples(LEVEL, LEVEL), max_size=12))
def test_no_release_on_it_is_beaten_and_every_other_is(points):
    releases = [release(f"r{place}", gap, moved) for place, (gap, moved) in enumerate(points)]
    best = [summary.release for summary in frontier(releases, "l1_mean")]

    def beats(first, second):
        (gap, moved), (other_gap, other_moved) = first, second
        return gap >= other_gap and moved <= other_moved and first != second

    for place, point in enumerate(points):
        beaten = any(beats(other, point) for other in points)
        if f"r{place}" in best:
            assert not beaten
        else:
            twin = any(other == point and f"r{at}" in best for at, other in enumerate(points))
            assert beaten or twin
    order = [points[int(name[1:])] for name in best]
    assert order == sorted(order, key=lambda point: point[1])


def test_releases_without_a_gap_or_such_a_distortion_are_left_out():
    releases = [release("a", None, 0.1), release("b", 0.5, 0.2, None), release("c", 0.4, 0.3, 2.0)]
    assert [s.release for s in frontier(releases, "l1_mean")] == ["b"]
    assert [s.release for s in frontier(releases, "logit_distortion")] == ["c"]
    # None has a gap of the least confident queries.
    first, second = frontier_lines(releases)
    assert "b (0.50 at 0.2)" in first
    assert "c (0.40 at 2)" in second


def test_releases_on_which_the_attack_failed_are_named_since_no_chart_shows_them():
    none, hidden = release("none", 0.0, 0.0), release("b, 2", None, 0.2)
    hidden = dataclasses.replace(hidden, failed=frozenset({"closed_gap"}))
    assert frontier_lines([none, hidden])[-1].endswith("the attack failed: b, 2.")

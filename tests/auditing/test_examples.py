"""Worst cases of an audit: planted errors, and the largest gains beyond the label."""

import types

import torch
from hypothesis import given
from hypothesis import strategies as st

from auditing.audits import CLASSES, blobs, subject_of
from oneway.auditing.examples import WORST, examples_of
from oneway.auditing.measures import SeedResult
from oneway.evaluation import AttackResult, Baselines, judge

TESTS = 50
SUBJECT = subject_of(tests=TESTS)
CONFIDENCES = torch.full((TESTS, CLASSES), 1 / CLASSES)


def attacked(released, clean, label):
    """A seed whose attackers err so on the test queries, and what an audit shows of it."""

    def results(**errors):
        return {
            name.replace("_", "-"): AttackResult(
                name.replace("_", "-"), "planted", error, SUBJECT.test, {}
            )
            for name, error in errors.items()
        }

    clean_results = results(label_only=label, retrained=clean)
    found = results(label_only=label, static=label + 1, retrained=released)
    best = min(clean_results.values(), key=lambda result: result.error)
    baselines = Baselines(best.errors, label, label)
    verdict = judge(found, baselines, CONFIDENCES, 0)
    held_out = torch.zeros(len(SUBJECT.auxiliary), dtype=torch.bool)
    seed = SeedResult(0, clean_results, found, baselines, verdict, held_out)
    return seed, examples_of(seed, SUBJECT, types.SimpleNamespace(clean_test=CONFIDENCES))


ERRORS = st.lists(st.integers(0, 1000), min_size=TESTS, max_size=TESTS).map(
    lambda levels: torch.tensor(levels).double() / 1000
)


@given(ERRORS, ERRORS, ERRORS)
def test_worst_cases_have_the_largest_gains_beyond_the_label_and_only_gains(released, clean, label):
    seed, (record, pictures) = attacked(released, clean, label)
    strongest = seed.strongest.errors
    gains = [float(label[query] - strongest[query]) for query in range(TESTS)]
    expected = sorted(
        (query for query in range(TESTS) if gains[query] > 0), key=lambda q: -gains[q]
    )
    assert [one["query"] for one in record["worst"]] == expected[:WORST]
    for one in (*record["shown"], *record["worst"]):
        assert one["gains"]["strongest"] == one["errors"]["label"] - one["errors"]["strongest"]
        assert one["gains"]["clean"] == one["errors"]["label"] - one["errors"]["clean"]
    count = len(record["shown"]) + len(record["worst"])
    assert {len(images) for images in pictures.values()} == {count}


def test_a_query_that_looks_like_its_class_is_no_worst_case():
    """The easiest of all by its error, and the label alone is as good a guide to it."""
    label, released = torch.full((2, TESTS), 0.5, dtype=torch.float64)
    label[3] = released[3] = 0.0
    released[7] = 0.4
    _, (record, _) = attacked(released, released, label)
    assert [one["query"] for one in record["worst"]] == [7]


def test_where_the_label_alone_is_strongest_there_is_no_worst_case():
    label = torch.full((TESTS,), 0.5, dtype=torch.float64)
    released = label + 0.1
    released[7] = 0.4  # better here by chance, but not the strongest attacker
    _, (record, _) = attacked(released, released, label)
    assert record["worst"] == []
    assert len(record["shown"]) == len(blobs(TESTS, 1)[1].unique())

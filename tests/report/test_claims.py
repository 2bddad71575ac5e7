"""Claims in words: records decide whether they hold, and mark those that rest on little."""

import re

import pytest

from laws import looped
from oneway.errors import CorruptDataError
from oneway.evaluation.records import numerics_of
from oneway.evaluation.store import write_json_lines
from oneway.report.claims import MISSING, OLDER, ONE_SEED, renew_claims
from planted_records import release_record
from report.test_measured import stored

GAPS = {"near": (0.48, 0.5, 0.52), "far": (0.1, 0.5, 0.9), "below": (-0.3, -0.25, -0.2)}
"""G by seed: 95 % intervals .45 to .55, -.49 to 1.49, and -.37 to -.13."""


@pytest.fixture
def kept(tmp_path):
    records = [release_record()]
    for name, gaps in GAPS.items():
        records += [release_record(name, seed, closed_gap=gap) for seed, gap in enumerate(gaps)]
    records += [
        release_record("old", seed, numerics={}, closed_gap=0.5 + seed / 9) for seed in (0, 1)
    ]
    records += [release_record("old one", numerics={})]
    for name, bound in (("bounded", 0.9), ("unbounded", None)):
        failed = {"attack_failed": True, "closed_gap": 1.0, "closed_gap_least_confident": 1.0}
        failed |= {"closed_gap_at_least": bound, "detection_limit": bound and 0.05}
        records += [release_record(name, seed, **failed) for seed in range(3)]
    return stored(tmp_path, records)


def judged(claim, kept, sentence="It is so"):
    page, refuted = renew_claims(f"{sentence}<!-- claim: {claim} -->\n", kept, "here.md")
    assert page.endswith(f"<!-- claim: {claim} -->\n")
    return page.partition("<!--")[0].removeprefix("It is so"), refuted


def mark(*words):
    return f" ({', '.join(words)})" if words else ""


@looped(
    ("claim", "holds"),
    [
        ('small "near" closed_gap > .44', True),
        ('small "near" closed_gap > .46', False),
        ('small "near" closed_gap < .56', True),
        ('small "near" closed_gap < .54', False),
        ('small "far" closed_gap > 0', False),
        ('small "far" closed_gap < 0.6', False),
        ('small "below" closed_gap < 0', True),
        ('small "below" closed_gap < -.1', True),
        ('small "far" closed_gap ? 0', True),
        ('small "far" closed_gap ? "near"', True),
        ('small "near" closed_gap ? 0', False),
        ('small "near" closed_gap ? "below"', False),
        ('small "near" closed_gap > "below"', True),
        ('small "near" closed_gap > "far"', False),
        ('small "near" error static > "below" error retrained', True),
    ],
)
def test_a_claim_holds_if_the_whole_interval_lies_on_its_side(kept, claim, holds):
    marks, refuted = judged(claim, kept)
    assert marks == ""
    assert [line.startswith(f"here.md: {claim}, but the records say") for line in refuted] == (
        [] if holds else [True]
    )


TAIL = "closed_gap_least_confident"


@looped(
    ("claim", "said"),
    [
        ('small "bounded" closed_gap > .89', None),
        ('small "bounded" closed_gap > .91', "at least 0.9 (attack failed)"),
        ('small "bounded" closed_gap < 2', "at least 0.9 (attack failed)"),
        ('small "bounded" closed_gap ? .95', None),
        ('small "bounded" closed_gap ? .5', "at least 0.9 (attack failed)"),
        ('small "bounded" closed_gap > "near"', None),
        ('small "near" closed_gap < "bounded"', None),
        ('small "bounded" closed_gap > "unbounded"', "at least 0.9 (attack failed) and nothing"),
        ('small "unbounded" closed_gap > -9', "nothing (attack failed)"),
        ('small "unbounded" closed_gap < 9', "nothing (attack failed)"),
        ('small "unbounded" closed_gap ? 0', None),
        (f'small "bounded" {TAIL} > 0', "nothing (attack failed)"),
        ('small "bounded" error static < .04', None),
    ],
)
def test_where_the_attack_failed_the_bound_of_g_decides(kept, claim, said):
    marks, refuted = judged(claim, kept)
    assert marks == ""
    assert len(refuted) == (said is not None)
    assert all(f"but the records say {said}" in line for line in refuted)


def test_claims_on_stale_records_on_one_seed_and_on_none_are_marked(kept):
    assert judged('small "old" closed_gap > -9', kept) == (mark(OLDER), [])
    assert judged('small "near" closed_gap > "old" error static', kept) == (mark(OLDER), [])
    assert judged('small "old" l1_mean < 1', kept) == ("", [])  # no attacker measures it
    assert judged('small "none" closed_gap > 0', kept) == (mark(ONE_SEED), [])
    assert judged('small "old one" closed_gap > 0', kept) == (mark(OLDER, ONE_SEED), [])
    assert judged('small "absent" closed_gap > 0', kept) == (mark(MISSING), [])
    assert judged('table1-mnist cpu "none" closed_gap > 0', kept) == (mark(MISSING), [])


def test_a_stale_claim_that_its_own_records_refute_is_refuted(kept):
    marks, refuted = judged('small "old" closed_gap > .9', kept)
    assert marks == mark(OLDER)
    assert len(refuted) == 1


def test_claims_may_rest_on_means_in_a_file_of_json_lines(kept):
    mean = {"data": "people", "seeds": 3, "error": 0.5, "error_half_width": 0.05}
    rows = [
        {"data": "people", "release": "near", "error": 9.0},  # of one seed
        {**mean, "guard": "near"},  # of no release
        {**mean, "release": "near"},
        {**mean, "release": "other", "error": 0.7},
        {**mean, "release": "near", "data": "digits", "error": 8.0},
        {**mean, "release": "one", "seeds": 1, "error_half_width": None},
        {**mean, "release": "fresh", "numerics": numerics_of(["kernel-ridge"])},
        {**mean, "release": "stale", "numerics": {"kernel-ridge": 1}},
    ]
    write_json_lines(kept.folder / "bench.jsonl", rows)
    for claim, holds in (
        ('"near" error < .56', True),
        ('"near" error < .54', False),
        ('"near" error < "other"', True),
        ('"other" error < "near"', False),
    ):
        marks, refuted = judged(f"bench.jsonl people {claim}", kept)
        assert (marks, len(refuted)) == ("", not holds)
    assert judged('bench.jsonl people "one" error > .4', kept) == (mark(ONE_SEED), [])
    for name, marks in (("fresh", ()), ("stale", (OLDER,))):
        assert judged(f'bench.jsonl people "{name}" error > .4', kept) == (mark(*marks), [])
    for nothing in ('bench.jsonl people "absent"', 'bench.jsonl cats "near"', 'no.jsonl a "near"'):
        assert judged(f"{nothing} error > 0", kept) == (mark(MISSING), [])
    with pytest.raises(CorruptDataError, match=r"needs the value 'rank_1'.*has error"):
        judged('bench.jsonl people "near" rank_1 > 0', kept)


def test_marks_come_and_go_with_the_records(kept):
    assert judged('small "near" closed_gap > 0', kept, f"It is so{mark(OLDER, ONE_SEED)}") == (
        "",
        [],
    )
    for text in ("", mark(OLDER), mark(MISSING), mark(OLDER, ONE_SEED)):
        assert judged('small "old" closed_gap > -9', kept, f"It is so{text}") == (mark(OLDER), [])


def test_several_claims_may_follow_a_sentence(kept):
    claims = (
        '<!-- claim: small\n"near" closed_gap > 0 --><!-- claim: small "far" closed_gap > 0 -->'
    )
    page, refuted = renew_claims(f"So.{claims} And on.", kept, "here.md")
    assert page == f"So.{claims} And on."
    old = '<!-- claim: small "old" closed_gap > -9 -->'
    page, _ = renew_claims(f"So{claims}{old}{old}. And on.", kept, "here.md")
    assert page == f"So{mark(OLDER)}{claims}{old}{old}. And on."
    assert renew_claims(page, kept, "here.md")[0] == page
    assert len(refuted) == 1
    assert re.search("far", refuted[0])


@looped(
    ("claim", "words"),
    [
        ("small near closed_gap > 0", "here.md: a claim must be"),
        ('small "near" closed_gap = 0', "here.md: a claim must be"),
        (
            'small "near" closed_gp > 0',
            "here.md: the claim .* needs the value 'closed_gp'.*closed_gap",
        ),
    ],
)
def test_a_claim_that_cannot_be_read_is_refused(kept, claim, words):
    with pytest.raises(CorruptDataError, match=words):
        judged(claim, kept)

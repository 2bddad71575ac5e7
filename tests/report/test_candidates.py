"""The table of candidate releases: who is recommended, and options that stand below it."""

import itertools

from oneway.defenses import ReleaseCandidate
from oneway.defenses.identity import Identity
from oneway.report.candidates import candidates_table


def candidate(defense, **options):
    return ReleaseCandidate(defense, options, Identity(), 0.1, 0.2, 0.0, 1.0, None, 0.2)


def test_options_that_all_codebooks_share_stand_below_in_their_order():
    for shared in itertools.permutations({"min_members": 5, "center": "mean", "size": 2}.items()):
        books = [
            candidate("codebook", rate_weight=weight, **dict(shared)) for weight in (0.00316, 0.1)
        ]
        table = candidates_table([candidate("rounding", decimals=2), *books], books[1])
        assert [row[0] for row in table.cells()] == [
            "rounding: decimals 2",
            "codebook: rate_weight 0.0032",
            "codebook: rate_weight 0.1 *",
        ]
        text = ", ".join(f"{name} {value}" for name, value in shared)
        assert table.footnotes == ["*: recommended.", f"All codebooks: {text}."]


def test_a_single_codebook_keeps_its_options_and_so_do_others():
    book, others = candidate("codebook", min_members=5), candidate("rounding", decimals=1)
    table = candidates_table([others, book], others)
    assert [row[0] for row in table.cells()] == [
        "rounding: decimals 1 *",
        "codebook: min_members 5",
    ]
    assert table.footnotes == ["*: recommended."]

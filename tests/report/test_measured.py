"""Measured blocks of pages: what stands in them, and how stale and missing records are marked."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from laws import looped
from oneway.attacks import ATTACKS
from oneway.benchmark import bundled_spec
from oneway.errors import CorruptDataError, MissingDataError, OnewayError
from oneway.evaluation import write_records
from oneway.evaluation.records import numerics_of
from oneway.evaluation.store import write_json_lines
from oneway.report.experiments import summary_table
from oneway.report.measured import END, KINDS, Measurements, renew_blocks
from oneway.report.sentences import MARK, NOT_TRAINED_OUT, STALE_AUDIT
from planted_records import release_record, row_of, spec_of

ROOT = Path(__file__).parents[2]


def block(what, inside="", below=""):
    return f"# Title\n\n<!-- measured: {what}{below} -->\n{inside}{END}\n\nThe end.\n"


def stored(folder, records):
    for record in records:
        name = "-".join(filter(None, (record.experiment, record.preset, f"seed{record.seed}")))
        alike = [
            r for r in records if (r.experiment, r.preset) == (record.experiment, record.preset)
        ]
        write_records(folder / f"{name}.jsonl", [r for r in alike if r.seed == record.seed])
    return Measurements.read(folder)


def board_record(release, preset, seed=0, *, stale=False, **changes):
    """Return a record of today's leaderboard, made by all attackers that it asks for, or stale."""
    spec = bundled_spec("leaderboard", preset)
    row = next(row for row in spec.releases if row.name == release)
    names = {*spec.applying_attackers(row), *spec.applying_attackers(spec.releases[0])}
    record = release_record(release, seed, experiment="leaderboard", preset=preset, **changes)
    rows = row_of(release, row.defense)
    return dataclasses.replace(
        record,
        defense=row.defense,
        numerics={} if stale else numerics_of(names),
        spec=spec_of(*(() if release == "none" else (rows,)), seed=seed),
    )


def lines_of(page):
    return [line for line in page.splitlines() if line.startswith("|")]


def cells(page, release):
    [row] = [line for line in lines_of(page) if line.startswith(f"| {release} ")]
    return [cell.strip() for cell in row.strip("| ").split(" | ")]


def test_a_block_is_what_the_records_give_and_the_rest_of_the_page_stays(tmp_path):
    kept = stored(
        tmp_path, [release_record(name, seed) for name in ("none", "noise") for seed in (0, 1)]
    )
    page = block("experiment small", "| old | 0.99 |\n")
    made = renew_blocks(page, kept, "page.md")
    [summaries] = kept.experiments.values()
    table = summary_table(summaries).markdown()
    assert f"<!-- measured: experiment small -->\n{table}\nBaselines" in made
    assert "best attack on clean scores 0.0156 ± 0.0000" in made
    assert MARK not in made
    assert "0.99" not in made
    assert made.startswith("# Title\n\n")
    assert made.endswith(f"{END}\n\nThe end.\n")
    assert renew_blocks(made, kept, "page.md") == made


def test_rows_of_stale_records_are_marked_and_the_mark_is_explained(tmp_path):
    fresh, stale = release_record("none"), release_record("noise", numerics={})
    made = renew_blocks(block("experiment small"), stored(tmp_path, [fresh, stale]), "page.md")
    assert [line.split(" | ")[0] for line in lines_of(made)[2:]] == ["| none", f"| noise {MARK}"]
    assert NOT_TRAINED_OUT in made


def test_the_leaderboard_marks_each_number_by_its_own_record(tmp_path):
    records = [
        *(board_record("none", "digits", seed) for seed in (0, 1)),
        *(board_record("none", "smoothed", seed) for seed in (0, 1)),
        board_record("top 1", "digits", l1_mean=0.125, closed_gap=0.75),
        *(board_record("top 1", "smoothed", seed, stale=True) for seed in (0, 1)),
    ]
    kept = stored(tmp_path, records)
    made = renew_blocks(block("leaderboard digits smoothed"), kept, "page.md")
    name, *numbers = cells(made, "top 1")
    assert name == "top 1"
    assert numbers[:2] == ["0.1250 (one seed)", "0.75 (one seed)"]
    assert numbers[3:] == ["0.2500 ± 0.0000", f"0.50 ± 0.00 {MARK}", f"-0.12 ± 0.00 {MARK}"]
    assert cells(made, "rounding, 3 decimals")[1:] == [f"- {MARK}"] * 6  # no record
    assert NOT_TRAINED_OUT in made
    assert len(lines_of(made)) == 2 + len(bundled_spec("leaderboard", "digits").releases)
    chosen = renew_blocks(block("leaderboard digits", below="\nnone\ntop 1\n"), kept, "page.md")
    assert [line.split(" | ")[0] for line in lines_of(chosen)[2:]] == ["| none", "| top 1"]
    assert NOT_TRAINED_OUT not in chosen


def test_defenses_and_attackers_have_their_rows_of_all_experiments(tmp_path):
    records = [
        *(board_record("rounding, 1 decimal", "digits", seed, closed_gap=0.75) for seed in (0, 1)),
        *(board_record("rounding, 2 decimals", "digits", s, stale=True) for s in (0, 1)),
        release_record("noise"),
    ]
    kept = stored(tmp_path, records)
    of_defense = renew_blocks(block("defense rounding"), kept, "page.md")
    assert cells(of_defense, "rounding, 1 decimal")[1:4] == [
        "Leaderboard, digits", "0.2500 ± 0.0000", "0.75 ± 0.00",
    ]  # fmt: skip
    assert f"| rounding, 2 decimals {MARK} |" in of_defense
    assert "noise" not in of_defense
    assert "`oneway leaderboard --data digits`" in of_defense
    over_all = renew_blocks(block("defenses digits"), kept, "page.md")
    assert f"| [rounding](rounding.md) | 0.50 to 0.75 {MARK} |" in over_all
    attacker = renew_blocks(block("attacker retrained"), kept, "page.md")
    assert "on 3 of 3 releases" in attacker
    assert f"| rounding, 2 decimals {MARK} | Leaderboard, digits | 0.0234" in attacker
    assert NOT_TRAINED_OUT in attacker
    for nothing in ("defense prototypes", "attacker averaging"):
        assert "Not measured in the stored records" in renew_blocks(block(nothing), kept, "p")


def test_an_experiment_without_records_says_so_and_how_to_make_them(tmp_path):
    kept = stored(tmp_path, [release_record()])
    made = renew_blocks(block("experiment table1-mnist cpu", "| old | 1.00 |\n"), kept, "page.md")
    assert (
        "there is no record; `oneway reproduce table1 --data mnist --preset cpu` makes it" in made
    )
    assert lines_of(made) == []


def test_lines_are_shown_by_the_columns_that_the_block_names(tmp_path):
    rows = [{"batch": n, "ms": n / 3, "commit": "0f0f"} for n in (1, 2)]
    write_json_lines(tmp_path / "bench.jsonl", rows)
    kept = stored(tmp_path, [release_record()])
    page = block("lines bench.jsonl", below="\nrows: batch\ntime, ms: ms .2f\n")
    made = renew_blocks(page, kept, "page.md")
    assert lines_of(made)[0] == "| rows | time, ms |"
    assert lines_of(made)[2:] == ["| 1 | 0.33 |", "| 2 | 0.67 |"]
    assert "\nMeasured: commit 0f0f" in made
    write_json_lines(
        tmp_path / "bench.jsonl",
        [*rows, {**rows[0], "numerics": {**numerics_of(["stack"]), "kernel-ridge": 1}}],
    )
    assert "\nMeasured by older attackers: commit 0f0f" in renew_blocks(page, kept, "page.md")
    write_json_lines(tmp_path / "bench.jsonl", [{"batch": 1, "ms": 1.0}])
    assert "older code" in renew_blocks(page, kept, "page.md")
    means = [{"batch": n, "ms": 1.0, "ms_half_width": half} for n, half in ((3, 0.25), (4, None))]
    write_json_lines(tmp_path / "bench.jsonl", means)
    assert lines_of(renew_blocks(page, kept, "page.md"))[2:] == [
        "| 3 | 1.00 ± 0.25 |",
        "| 4 | 1.00 |",
    ]


def test_an_audit_says_its_verdict_and_if_older_attackers_made_it(tmp_path):
    kept = stored(tmp_path, [release_record()])
    shutil.copy(ROOT / "results" / "audit-lenet-adversarial-noise.json", tmp_path / "audit.json")
    page = block("audit audit.json")
    stored_values = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    values = stored_values["inversion"]
    quoted = [line for line in renew_blocks(page, kept, "p").splitlines() if line[:2] == "> "]
    assert quoted[0] == f"> - {STALE_AUDIT}"
    values["numerics"] = numerics_of(ATTACKS)
    (tmp_path / "audit.json").write_text(json.dumps(stored_values), encoding="utf-8")
    fresh = [line for line in renew_blocks(page, kept, "p").splitlines() if line[:2] == "> "]
    assert fresh == quoted[1:]
    assert fresh[0].startswith(f"> - The release closes G = {values['closed_gap']:.2f} of the gap")


@looped(
    ("page", "error", "words"),
    [
        (
            "<!-- measured: experiment small -->\n",
            CorruptDataError,
            "here.md: each .* must have an end",
        ),
        (block("experimnt small"), OnewayError, "here.md.*Did you mean 'experiment'"),
        (block("experiment"), CorruptDataError, "here.md.*'experiment' must name what it shows"),
        (
            block("lines absent.jsonl"),
            MissingDataError,
            "absent.jsonl, but there is no such record",
        ),
        (block("audit absent.json"), MissingDataError, "absent.json, but there is no such record"),
        (block("lines b.jsonl", below="\nA: b"), CorruptDataError, "HEADING: FIELD FORMAT.*'A: b'"),
    ],
)
def test_a_block_that_cannot_be_made_is_refused(tmp_path_factory, page, error, words):
    folder = tmp_path_factory.mktemp("records")
    write_json_lines(folder / "b.jsonl", [{"a": 1}])
    with pytest.raises(error, match=words):
        renew_blocks(page, stored(folder, [release_record()]), "here.md")


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match="holds no records"):
        Measurements.read(tmp_path)


def test_every_kind_is_documented():
    from oneway.report import measured

    assert [kind for kind in KINDS if f"``{kind} " not in measured.__doc__] == []


def test_an_entry_stands_in_the_leaderboard_of_the_same_splits_alone(tmp_path):
    kept = [board_record(name, "digits") for name in ("none", "top 3")]
    theirs = [
        dataclasses.replace(each, release=name, experiment="entry-them")
        for each, name in zip(kept, ("none", "coarse"), strict=True)
    ]
    page = block("leaderboard digits")
    made = renew_blocks(page, stored(tmp_path, [*kept, *theirs]), "page.md")
    assert cells(made, "coarse (them)")[1:] == cells(made, "top 3")[1:]
    assert "none (them)" not in made
    provenance = dataclasses.replace(theirs[0].provenance, model="another classifier")
    theirs = [dataclasses.replace(each, provenance=provenance) for each in theirs]
    made = renew_blocks(page, stored(tmp_path, [*kept, *theirs]), "page.md")
    assert "(them)" not in made

"""The page of an audit says what its record says, first what matters, and nothing unescaped."""

import base64
import copy
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from auditing.audits import whole
from oneway.auditing import InversionRecord
from oneway.evaluation import FLAGS
from oneway.report.audit import verdict
from oneway.report.page.audit import audit_page
from oneway.report.page.identification import percent
from oneway.report.page.render import render
from report.page.reading import assert_stands_alone, heads_of, read, rows_of, tables

ROOT = Path(__file__).parents[3]
LENET = json.loads(
    (ROOT / "results" / "audit-lenet-adversarial-noise.json").read_text(encoding="utf-8")
)["inversion"]
LABEL = "No label-preserving release can help against attacks that read only the label."


def changed(**changes):
    return copy.deepcopy(LENET) | changes


def html_of(record, pictures=None):
    """The page of a record, or of its JSON values."""
    command = None
    if isinstance(record, dict):
        command = record.get("command")
        values = {name: value for name, value in record.items() if name != "command"}
        record = InversionRecord.from_json(values, "a test")
    return render(audit_page(whole(record, command=command), pictures))


def page_of(record, pictures=None):
    return assert_stands_alone(html_of(record, pictures))


def words(page):
    (body,) = page.every("body")
    return body.text()


def verdict_of(page):
    """The stamp, the sentence and the notices, as they stand first."""
    (section,) = [one for one in page.every("section") if one.has("verdict")]
    paragraphs = section.every("p")
    return (
        section.every("h2")[0].text(),
        paragraphs[0].text(),
        [one.text() for one in paragraphs if one.has("notice")],
    )


@pytest.fixture(scope="module")
def shown(audits):
    outcome = audits.images
    return page_of(outcome.record, outcome.pictures), outcome


def test_the_verdict_comes_first_and_what_no_release_can_help_right_after_it(shown):
    page, outcome = shown
    stamp, sentence, notices = verdict_of(page)
    assert sentence == verdict(outcome.record)[0]
    assert notices[0] == LABEL
    body = words(page)
    assert body.index(stamp) < body.index(sentence) < body.index(LABEL) < body.index("In numbers")
    assert page.every("title")[0].text().startswith(stamp)


def test_a_void_audit_says_so_before_anything_else():
    controls = copy.deepcopy(LENET["controls"])
    controls["permutation"] |= {"passed": False, "measured": 0.8}
    page = page_of(changed(void=True, controls=controls))
    stamp, sentence, _ = verdict_of(page)
    assert stamp.startswith("VOID")
    assert next(one for one in page.every("section") if one.has("verdict")).has("void")
    assert sentence.startswith("VOID: these attackers misjudged permutation")
    assert page.every("title")[0].text().startswith("VOID")
    row = next(row for row in rows_of(tables(page)[CONTROLS]) if row[0] == "permutation")
    assert row[2:4] == ["0.80", "NO"]
    assert "Claim nothing: this audit is void." in words(page)


def test_no_gap_is_said_and_not_drawn_as_a_number():
    none = dict.fromkeys(
        (
            "closed_gap",
            "closed_gap_interval",
            "closed_gap_least_confident",
            "closed_gap_least_confident_interval",
        )
    )
    page = page_of(changed(**none))
    assert verdict_of(page)[0] == "No gap to close"
    assert FRONTIER not in tables(page)


def test_an_interval_without_an_end_is_told_as_such():
    record = changed(closed_gap_interval={"low": "-inf", "estimate": 0.2, "high": 0.9})
    page = page_of(record)
    assert verdict_of(page)[0] == "Inconclusive: too few queries"
    assert "95 %: -inf to 0.90" in words(page)
    assert rows_of(tables(page)[FRONTIER])[1][2:] == ["0.27", "-inf", "0.90"]


def test_few_seeds_are_not_to_be_quoted():
    for seeds, start in (([0], "Only 1 seed was run"), ([0, 1], "Only 2 seeds were run")):
        _, _, notices = verdict_of(page_of(changed(seeds=seeds)))
        (notice,) = [one for one in notices if "seed" in one]
        assert notice.startswith(start)
        assert "do not quote" in notice
    _, _, notices = verdict_of(page_of(changed(seeds=[0, 1, 2])))
    assert not any("seed" in one for one in notices)


def test_without_controls_nothing_vouches_and_that_is_said_above():
    (_, _, notices) = verdict_of(page_of(changed(controls={})))
    assert "No controls were run: these attackers are untested." in notices


CONTROLS = "Controls: releases whose leak is known"
FRONTIER = "How much of the gap is closed, against how far probabilities move"
BASELINES = "Error of each attacker on the release (further left: more was read)"
RELIABILITY = "Do probabilities mean what they say? On the dashed line they do"


def number(cell):
    return None if cell == "-" else float(cell)


def close(cell, value, digits):
    """Say whether a cell is a number of the record, rounded as it says."""
    return number(cell) == (None if value is None else pytest.approx(value, abs=0.51 * 10**-digits))


def test_every_number_of_every_table_is_the_records(shown):
    page, outcome = shown
    record, found = outcome.record.to_json(), tables(page)
    attackers = rows_of(found["Attackers on the release"])
    assert [row[0] for row in attackers] == list(record["errors"])
    for name, error, rank, _ in attackers:
        assert close(error, record["errors"][name], 4)
        assert close(rank, record["reidentified"][name]["rank_1"], 4)
    privacy = rows_of(found["What is reconstructed (by the strongest attacker)"])
    keys = (
        "error",
        "error_worst_5_percent",
        "error_worst_1_percent",
        "gain_largest_5_percent",
        "gain_largest_1_percent",
        "psnr_decibels",
        "ssim",
        "reidentified_rank_1",
        "reidentified_rank_5",
    )
    for key, (_, *cells) in zip(keys, privacy, strict=True):
        for who, cell in zip(("released", "clean", "label"), cells, strict=True):
            assert close(cell, record["privacy"][who][key], 4)
    useful, rows = record["utility"], rows_of(found["What users and the server pay"])
    for key, (_, *cells) in zip(useful["clean"], rows[:6], strict=True):
        for who, cell in zip(("clean", "released"), cells, strict=True):
            assert close(cell, useful[who][key], 4)
    for key, (_, *cells) in zip(useful["cost"]["bare"], rows[6:], strict=True):
        for who, cell in zip(("bare", "guarded"), cells, strict=True):
            assert close(cell, useful["cost"][who][key], 0 if "second" in key[-8:] else 2)
    for name, _, measured, _, vouches in rows_of(found[CONTROLS]):
        one = record["controls"][name]
        assert close(measured, one["measured"], 2)
        assert vouches == ", ".join(filter(None, (one["attack"], one["input_transform"])))


def test_every_number_of_every_figure_is_the_records(shown):
    page, outcome = shown
    record, found = outcome.record.to_json(), tables(page)
    baselines = {name: number(cell) for name, cell in rows_of(found[BASELINES])}
    told = {"clean": "clean scores", "label": "the label alone", "prior": "the mean of all"}
    for name, said in told.items():
        assert baselines[f"baseline: {said}"] == pytest.approx(
            record["baselines"][name], abs=5.1e-5
        )
    for name, error in record["errors"].items():
        last = ", the strongest" if name in record["strongest"] else ""
        assert baselines[f"attacker: {name}{last}"] == pytest.approx(error, abs=5.1e-5)
    assert len(baselines) == 3 + len(record["errors"])
    rows = rows_of(found[FRONTIER])
    for row, key in zip(rows[1:], ("closed_gap", "closed_gap_least_confident"), strict=True):
        assert close(row[1], record["utility"]["l1_mean"], 4)
        assert close(row[2], record[key], 2)
    bins = rows_of(found[RELIABILITY])
    said = [
        (who, one["count"], one["confidence"], one["accuracy"])
        for who, key in (("clean scores", "clean"), ("the release", "released"))
        for one in record["utility"]["reliability"][key]
    ]
    assert len(bins) == len(said)
    for cells, (who, count, sure, right) in zip(bins, said, strict=True):
        assert cells[:2] == [who, str(count)]
        assert close(cells[2], sure, 3)
        assert close(cells[3], right, 3)


def decoded(image):
    _, _, data = image.attributes["src"].partition("base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_pictures_are_those_of_the_audit_each_with_words_and_all_of_one_size(shown):
    page, outcome = shown
    examples, pictures = outcome.record.examples, outcome.pictures
    images = page.every("img")
    count = len(examples["shown"]) + len(examples["worst"])
    assert len(images) == 5 * count
    split = len(examples["shown"])
    expected = [pictures[who][:split] for who in pictures] + [
        pictures[who][split:] for who in pictures
    ]
    flat = [image for some in expected for image in some]
    for image, levels in zip(images, flat, strict=True):
        np.testing.assert_array_equal(decoded(image), levels)
    assert len({(one.attributes["width"], one.attributes["height"]) for one in images}) == 1
    alts = [one.attributes["alt"] for one in images]
    for some in (alts[: 5 * split], alts[5 * split :]):
        assert len(set(some)) == len(some)
    first = examples["shown"][0]["query"]
    assert f"Query {first}: as it was sent" in alts
    worst = next(table for told, table in tables(page).items() if "beyond the label" in told)
    gain, clean, error, label, confidence = rows_of(worst)[-5:]
    assert gain[0] == "Gain beyond the label"
    for row, view in ((error, "strongest"), (label, "label")):
        assert row[1:] == [f"{one['errors'][view]:.4f}" for one in examples["worst"]]
    assert gain[1:] == [f"{one['gains']['strongest']:.4f}" for one in examples["worst"]]
    assert clean[1:] == [f"{one['gains']['clean']:.4f}" for one in examples["worst"]]
    assert confidence[1:] == [f"{one['confidence']:.3f}" for one in examples["worst"]]
    assert "as confidential as the queries" in verdict_of(page)[2][-1]


def test_without_images_no_picture_is_left_and_the_worst_cases_are_numbers(audits):
    record = audits.images.record.to_json()
    page = page_of(record)
    assert page.every("img") == []
    assert "confidential" not in words(page)
    rows = rows_of(tables(page)["Queries of which the release reveals most beyond the label"])
    assert rows == [
        [
            str(one["query"]),
            *(f"{one['gains'][who]:.4f}" for who in ("strongest", "clean")),
            *(f"{one['errors'][who]:.4f}" for who in ("strongest", "clean", "label")),
            f"{one['confidence']:.3f}",
        ]
        for one in record["examples"]["worst"]
    ]


def test_worst_cases_are_left_out_where_none_is_and_where_gains_were_not_measured(audits):
    record = audits.images.record.to_json()
    shown, examples = len(record["examples"]["shown"]), record["examples"]
    pictures = {source: images[:shown] for source, images in audits.images.pictures.items()}
    none = page_of(record | {"examples": examples | {"worst": []}}, pictures)
    assert "reconstructs no query better than the label-only attacker" in words(none)
    before = [{key: one[key] for key in one if key != "gains"} for one in examples["worst"]]
    old = page_of(record | {"examples": examples | {"worst": before}}, audits.images.pictures)
    assert "The worst cases" not in words(old)
    for page in (none, old):
        assert len(page.every("img")) == 5 * shown
        assert not any("beyond the label" in title for title in tables(page))


def test_records_are_shown_by_column(audits):
    record = audits.tables.record.to_json()
    page = page_of(record, audits.tables.pictures)
    assert FRONTIER not in tables(page)  # it is of no defense, which changes nothing
    assert page.every("img") == []
    rows = {
        row[0]: row[1:]
        for row in rows_of(tables(page)["What is reconstructed (by the strongest attacker)"])
    }
    for name, one in record["privacy"]["released"]["columns"].items():
        kind = "accuracy" if one["kind"] == "categorical" else "error"
        assert close(rows[f"{name}, {kind}"][0], one["value"], 4)
    assert not any("PSNR" in name for name in rows)
    assert "records of 7 numbers" in words(page)


def test_without_true_labels_there_is_no_reliability_and_no_accuracy(audits):
    page = page_of(audits.tables.record)
    assert RELIABILITY not in tables(page)
    assert "Accuracy" not in words(page)


def test_raised_flags_are_linked_and_their_meaning_is_on_the_page():
    page = page_of(changed(flags=[{"name": name, "detail": "<i>so</i>"} for name in FLAGS]))
    for name in FLAGS:
        assert_explained(page, name)


def assert_explained(page, name):
    (section,) = page.every("section", id=f"flag-{name}")
    links = [one for one in page.every("a") if one.attributes["href"] == f"#flag-{name}"]
    assert name in links[0].text()
    said = section.text()
    assert "<i>so</i>" in said
    kind = FLAGS[name]
    for heading, text in zip(
        ("Raised if", "Why it matters", "What to do"),
        (kind.raised_if, kind.why, kind.what_to_do),
        strict=True,
    ):
        assert heading in said
        # Every word but marks of Markdown and addresses of links.
        plain = text.replace("`", "").replace("[", "").replace("|", " ").replace("---", " ")
        for word in plain.split():
            if "](" not in word and word != "-":
                assert word in said, word


def test_flags_link_to_each_other_where_both_are_raised_and_nowhere_else():
    one, other = "more-budget-smaller-gap", "tells-more-than-scores"
    flags = [{"name": name, "detail": "so"} for name in (one, other)]
    both = page_of(changed(flags=flags))
    (section,) = both.every("section", id=f"flag-{one}")
    assert f"#flag-{other}" in [link.attributes["href"] for link in section.every("a")]
    alone = page_of(changed(flags=flags[:1]))
    (section,) = alone.every("section", id=f"flag-{one}")
    assert section.every("a") == []
    assert other in section.text()


@settings(max_examples=20)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30))
def test_texts_of_a_record_are_escaped_wherever_they_stand(text):
    name = f"<script>alert(1)</script>\"'{text}"
    record = changed(
        release=name,
        options={name: name},
        errors={"label-only": 0.05, name: 0.04},
        reidentified={"label-only": {"rank_1": 0.1}, name: {"rank_1": 0.1}},
        strongest=[name],
        command=name,
        flags=[{"name": "too-few-seeds", "detail": name}],
    )
    record["plan"]["left_out"] = [name]
    record["environment"]["processor"] = name
    html = html_of(record)
    assert "<script" not in html
    page = assert_stands_alone(html)
    squeezed = " ".join(name.split())
    assert squeezed in " ".join(words(page).split())


def test_how_it_was_measured_is_all_there(shown):
    page, outcome = shown
    record = outcome.record.to_json()
    (how,) = page.every("section", id="how")
    said = how.text()
    for part in (
        *record["plan"]["input_transforms"],
        *map(str, record["plan"]["widths"]),
        *record["errors"],
        f"{record['auxiliary']:,} auxiliary rows",
        f"{record['queries']:,} test queries",
        record["environment"]["processor"],
        f"torch {record['environment']['torch']}",
        f"oneway {record['environment']['oneway']}",
    ):
        assert part in said


def facts_of(page):
    (section,) = page.every("section", id="filing")
    names, texts = section.every("dt"), section.every("dd")
    return {name.text(): text.text() for name, text in zip(names, texts, strict=True)}


def test_the_page_says_what_was_audited_by_what_and_when(shown):
    page, outcome = shown
    record, facts = outcome.record.to_json(), facts_of(page)
    made = record["provenance"]
    assert facts["Version"] == f"oneway {record['environment']['oneway']}"
    assert facts["Made"].startswith(made["date"])
    assert facts["Data, SHA-256"] == made["data"]
    assert facts["Model, SHA-256"] == made["model"]
    assert facts["Classes"] == "3: 0, 1, 2"
    assert facts["Command"].startswith("not recorded")
    assert facts["Guard version"].startswith("none")
    assert facts["Seeds and controls"].startswith("seed 0; ")
    results = [one["passed"] for one in record["controls"].values()]
    assert facts["Seeds and controls"].endswith(
        f"{results.count(True)} of {len(results)} controls passed, "
        f"{results.count(None)} inconclusive"
    )
    told = {"command": "oneway audit model.pt", "guard_version": "g1"}
    told["provenance"] = made | {"model": None}
    facts = facts_of(page_of(record | told))
    assert facts["Command"] == "oneway audit model.pt"
    assert facts["Guard version"] == "g1"
    assert facts["Model, SHA-256"] == "not at hand"


ASKED = "What is asked, and what this run shows of it"


def shows(record):
    return [row[2] for row in rows_of(tables(page_of(record))[ASKED])]


def test_what_documents_ask_is_answered_with_the_numbers_of_the_run_and_no_more(audits):
    record = audits.images.record
    rows = rows_of(tables(page_of(record))[ASKED])
    assert [row[0].split(",")[0] for row in rows] == [
        "Australian ISM",
        "OWASP AISVS 1.0",
        "EDPB Opinion 28/2024",
    ]
    exact, inversion, people = shows(record)
    assert f"{record.utility['l1_mean']:.4f}" in exact
    for error in (record.adaptive_error, record.baselines.label, record.baselines.clean):
        assert f"{error:.4f}" in inversion
    worst = max(record.groups, key=lambda group: group.reduction.estimate)
    assert f"Most hurt, of groups with at least 30 queries: class {worst.name}. " in people
    assert "met" not in exact.split()  # only an exact release is judged, as not met
    # Each says what is missing, and of people in the training data nothing is claimed.
    assert all(row[3] for row in rows)
    assert "people in the training data" in rows[2][3]


def test_exact_scores_do_not_meet_what_is_asked_and_a_void_audit_shows_nothing(audits):
    assert shows(audits.tables.record)[0].startswith("Not met")
    utility = LENET["utility"]
    equal = changed(utility=utility | {"l1_mean": 0.0, "l1_max": 0.0})
    assert shows(equal)[0].startswith("Not met")
    controls = copy.deepcopy(LENET["controls"])
    controls["permutation"] |= {"passed": False}
    void = changed(void=True, controls=controls)
    assert shows(void) == ["Nothing: this audit is void."] * 3


def test_groups_stand_from_the_most_hurt_on_with_the_numbers_of_the_record(audits):
    record = audits.tables.record
    page = page_of(record)
    assert {group.kind for group in record.groups} >= {"sex"}
    for kind in {group.kind for group in record.groups}:
        groups = [group for group in record.groups if group.kind == kind]
        groups.sort(key=lambda group: -group.reduction.estimate)
        rows = rows_of(tables(page)[f"Leakage by {kind}"])
        assert [row[0] for row in rows] == [group.name for group in groups]
        for row, group in zip(rows, groups, strict=True):
            assert row[1:] == [
                f"{group.queries}",
                *(f"{e:.4f}" for e in (group.error, group.label_error, group.clean_error)),
                *(percent(getattr(group.reduction, end)) for end in ("estimate", "low", "high")),
                percent(group.reidentified),
            ]
    assert "nothing is said of groups" in words(page_of(record.to_json() | {"groups": []}))
    # Where the average is above all that are listed, a group that is left out is hurt more.
    listed = record.to_json() | {"adaptive_error": 0.0}
    assert "groups with fewer queries are hurt more" in words(page_of(listed))
    assert page_of(LENET).every("section", id="groups") == []


def test_a_group_with_too_few_queries_for_an_interval_says_so(audits):
    record = audits.tables.record.to_json()
    groups = [group for group in record["groups"] if group["kind"] == "sex"]
    endless = [group | {"reduction": group["reduction"] | {"low": -math.inf}} for group in groups]
    page = page_of(record | {"groups": endless})
    assert "(too few queries for an interval)" in words(page)
    assert {row[6] for row in rows_of(tables(page)["Leakage by sex"])} == {"-"}


def test_a_figure_has_a_title_a_description_and_a_table(shown):
    page, _ = shown
    charts = [one for one in page.every("svg") if one.has("chart")]
    assert len(charts) == 4
    for chart in charts:
        named = chart.attributes["aria-labelledby"].split()
        kinds = [page.every(id=one)[0].name for one in named]
        assert kinds == ["title", "desc"]
        assert all(page.every(id=one)[0].text() for one in named)
    for figure in page.every("figure"):
        (table,) = figure.every("table")
        assert rows_of(table)
        assert heads_of(table)


def test_headings_go_down_one_step_at_a_time(shown):
    page, _ = shown
    levels = [int(one.name[1]) for one in page.every() if one.name in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_same_record_makes_the_same_page(audits):
    outcome = audits.images
    again = json.loads(json.dumps(outcome.record.to_json()))
    assert html_of(again, outcome.pictures) == html_of(outcome.record, outcome.pictures)


def test_a_reader_finds_what_is_not_well_formed():
    """The parser of these tests would see an open tag, or one that is closed by another."""
    for broken in ("<p>a", "<p><b>a</p></b>", "<div/>", '<p id="a" id="b"></p>'):
        with pytest.raises(AssertionError):
            read(broken)

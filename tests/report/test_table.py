"""Tables say what the records say: every row, every number, and a dash where there is none."""

import io

import pytest
from rich.console import Console

from oneway.attacks import ATTACKS
from oneway.report import attack_table, release_table, remarks


def record_of(name="none", **changed):
    record = {
        "release": name,
        "accuracy": 0.8125,
        "label_changes": 3,
        "logit_distortion": 1.2344,
        "l1_mean": 0.56781,
        "errors": {"label-only": 0.0911, "static": 0.0822, "retrained": 0.0733},
        "baselines": {"clean": 0.0111, "label": 0.0922, "prior": 0.1033},
        "closed_gap": 0.374,
        "closed_gap_least_confident": -0.126,
        "milliseconds_single_query": 4.56,
        "flags": (),
        "auxiliary": 2250,
        "seed": 0,
    }
    return record | changed


SHOWN = ["81.25 %", "3", "1.234", "0.5678", "0.0822", "0.0733", "0.37", "-0.13", "4.6"]


def rendered(table, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def markdown_rows(text):
    rows = [line.strip().strip("|").split(" | ") for line in text.strip().splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def markdown_of(records):
    return release_table(records, "title").markdown()


def terminal_rows(table):
    columns = table.text().columns
    return [list(cells) for cells in zip(*(column.cells for column in columns), strict=True)]


def test_both_tables_show_every_number_of_a_record():
    expected = ["none", *SHOWN]
    assert markdown_rows(markdown_of([record_of()]))[2] == expected
    assert terminal_rows(release_table([record_of()], "title")) == [[*expected]]
    text = rendered(release_table([record_of()], "some title"))
    assert all(cell in text for cell in [*expected, "some title"])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_both_tables_have_one_row_per_record_in_order(count):
    names = [f"release {place}" for place in range(count)]
    records = [record_of(name) for name in names]
    header, rule, *rows = markdown_rows(markdown_of(records))
    assert [row[0] for row in rows] == names
    assert {len(row) for row in rows} <= {len(header)}
    assert rule[0].strip("- ") == ""
    table = release_table(records, "title").text()
    assert table.row_count == count
    assert [column.header for column in table.columns] == header


@pytest.mark.parametrize("key", ["closed_gap", "closed_gap_least_confident"])
def test_a_missing_gap_is_a_dash_and_nothing_else_is(key):
    record = record_of(**{key: None})
    [row] = markdown_rows(markdown_of([record]))[2:]
    place = {"closed_gap": 7, "closed_gap_least_confident": 8}[key]
    assert [column for column, cell in enumerate(row) if cell == "-"] == [place]
    assert terminal_rows(release_table([record], "title")) == [row]


def test_an_attacker_who_did_not_run_is_a_dash():
    record = record_of(errors={"label-only": 0.1, "static": 0.2})
    [row] = markdown_rows(markdown_of([record]))[2:]
    assert [column for column, cell in enumerate(row) if cell == "-"] == [6]


def test_a_name_is_shown_as_it_is_though_it_looks_like_markup():
    name = "noise [bold] | [/] eta"
    record = record_of(name)
    assert name in rendered(release_table([record], "title [red]"))
    assert "title [red]" in rendered(release_table([record], "title [red]"))
    line = markdown_of([record]).splitlines()[2]
    assert line.startswith("| noise [bold] \\| [/] eta | 81.25 % |")


def test_the_attack_table_has_one_row_per_attacker_with_what_it_knows():
    table = attack_table(record_of(errors={"label-only": 0.0911, "static": 0.0822, "mine": 0.5}))
    rows = terminal_rows(table)
    assert [row[0] for row in rows] == ["label-only", "static", "mine"]
    assert [row[-1] for row in rows] == ["0.0911", "0.0822", "0.5000"]
    assert rows[-1][1] == ""
    assert "the baseline" in rows[0][1]


def test_it_is_said_of_every_registered_attacker_what_it_knows():
    rows = terminal_rows(attack_table(record_of(errors=dict.fromkeys(ATTACKS, 0.1))))
    assert all(knows for _, knows, _ in rows)


def test_remarks_give_the_floors_the_limits_and_every_flag_with_its_release():
    records = [
        record_of("none"),
        record_of("one", flags=("this is odd", "that is odd")),
        record_of("two", flags=("this is odd",)),
    ]
    lines = remarks(records)
    text = "\n".join(lines)
    assert all(floor in text for floor in ("0.0111", "0.0922", "0.1033"))
    assert "No label-preserving release can help" in text
    assert "up to 2250 queried images" in text
    flags = [line for line in lines if line.startswith("Flag")]
    assert flags == [
        "Flag, one: this is odd.",
        "Flag, one: that is odd.",
        "Flag, two: this is odd.",
    ]


@pytest.mark.parametrize("seeds", [[0], [4, 4], [0, 1, 2]])
def test_one_seed_is_called_a_smoke_run(seeds):
    text = "\n".join(remarks([record_of(seed=seed) for seed in seeds]))
    assert ("smoke run" in text) == (len(set(seeds)) == 1)

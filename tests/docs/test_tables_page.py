"""The tutorial for tables: a model of a frame is audited by the page's own command."""

import dataclasses
import json
import re
import shlex
import warnings

import pytest

from auditing.audits import TINY, quickly, run_few_controls
from fences import PageRun, commands_of
from invoking import invoke
from oneway.auditing import CONTROLS, AuditRecord, AuditSettings
from oneway.auditing.audit_target import LEAST_AUXILIARY

PAGE = "docs/tutorials/tables.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = PageRun(PAGE, tmp_path_factory.mktemp("tables"))
    run.reach(len(run.blocks) - 1)
    yield run
    run.close()


@pytest.fixture(scope="module")
def audited(page):
    """What the command said in a few seconds, its warnings, and its record."""
    commands = [
        words
        for block in page.blocks
        if block.language == "bash"
        for words in commands_of(block.text)
    ]
    [words] = [words for words in commands if words[:2] == ["oneway", "audit"]]
    words = words[1:]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(page.folder)
        for name, rows in (("auxiliary.csv", LEAST_AUXILIARY), ("test.csv", 80)):
            lines = (page.folder / name).read_text(encoding="utf-8").splitlines()
            (page.folder / name).write_text("\n".join(lines[: rows + 1]), encoding="utf-8")
        quickly(patch)
        run_few_controls(patch)
        small = dataclasses.replace(TINY, controls=True, input_transforms=("within-label",))
        patch.setattr(AuditSettings, "for_rows", classmethod(lambda *_, **__: small))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = invoke(*words, "--cache", "cache")
    assert isinstance(result.exception, SystemExit | None), shlex.join(words)
    assert result.exit_code in (0, 1), result.output
    text = (page.folder / "report" / "audit.json").read_text(encoding="utf-8")
    return result.output, caught, AuditRecord.from_json(json.loads(text), "audit.json").inversion


def test_the_bare_model_is_as_often_right_as_the_audited_one(page, audited):
    test = page.names["patients"](200, seed=2)[:80]
    accuracy = page.names["model"].score(test.drop(columns="diagnosis"), test["diagnosis"])
    assert audited[2].utility["clean"]["top_1"] == pytest.approx(accuracy, abs=0.02)
    assert accuracy > 0.8
    assert audited[2].label_changes == 0


def test_there_is_no_warning_and_the_verdict_says_which_controls_vouched(audited):
    output, caught, record = audited
    assert len(caught) <= 1, [str(one.message) for one in caught]
    said = " ".join(output.split())
    vouched = re.findall(r"Controls (passed|failed|inconclusive)[^:]*: ([a-z, -]+)\.", said)
    assert vouched
    named = {name for _, names in vouched for name in names.split(", ")}
    assert named == set(record.controls)
    assert named <= set(CONTROLS)
    assert {"passed": True, "inconclusive": None}.keys() & {kind for kind, _ in vouched}


def test_what_was_understood_is_said_of_records_and_not_of_images(audited):
    output, _, record = audited
    said = " ".join(output.split())
    assert "records of 5 columns" in said
    assert "image" not in said
    assert "missing values, encoded as such: of 80 rows in column 'marker'" in said
    assert set(record.privacy["released"]["columns"]) == {
        "sex",
        "ward",
        "age",
        "pressure",
        "marker",
    }
    names = ["infection", "none found", "sepsis"]
    assert [one.name for one in record.understanding.classes] == names
    assert not (record.privacy["released"]["columns"]["marker"]["value"] > 1)

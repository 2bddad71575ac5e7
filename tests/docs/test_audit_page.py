"""What docs/audit.md says of the command, its files and its thresholds is so."""

import inspect
import itertools
import re
from pathlib import Path

import pytest
import torch

from fences import blocks_of, commands_of
from invoking import all_commands
from laws import looped
from oneway.auditing import CONTROLS, AuditRecord, AuditSettings, AuditTarget, ModelAudit, pacing
from oneway.auditing.audit_target import LEAST_AUXILIARY, LEAST_TEST
from oneway.auditing.controls import BROKEN_BELOW, HOLDS_ABOVE, READ_ABOVE
from oneway.auditing.plan import FULL_AUDIT_TRANSFORMS, AuditPlan, Costs, make_plan
from oneway.cli.common import parse_options
from oneway.defenses import check_options
from oneway.evaluation import Store
from oneway.targets import TorchTarget
from oneway.targets.opening import ENDPOINT, ENTRY_POINT, FILES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
COMMANDS = [
    words
    for block in blocks_of("docs/audit.md")
    if block.language == "bash"
    for words in commands_of(block.text)
]
AUDIT = all_commands().commands["audit"]
OPTIONS = {
    name
    for option in AUDIT.params
    for name in (*option.opts, *option.secondary_opts)
    if name.startswith("--")
}


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_options_that_are_named_exist_and_all_options_are_named():
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert named <= OPTIONS
    assert OPTIONS - named <= {"--help", "--controls"}


def test_each_kind_of_model_stands_in_the_table_with_options_that_it_takes():
    rows = section("Pointing it at a model").split("| --- | --- |\n")[1].split("\n\n")[0]
    seen = set()
    for row in rows.splitlines():
        words = re.findall(r"`([^`]+)`", row.split(" | ")[-1])
        endings = {ending for word in words for ending in FILES if word.endswith(ending)}
        seen |= endings
        kinds = [FILES[ending] for ending in endings]
        kinds += [ENDPOINT for word in words if word.startswith("https:")]
        options = {name for word in words for name in re.findall(r"^(\w+)(?:=|$)", word)}
        if not kinds:
            assert ENTRY_POINT.fullmatch(words[0])
        for kind in kinds:
            assert options <= set(inspect.signature(kind.open).parameters), row
    assert seen == set(FILES)


@looped("command", COMMANDS, ids=lambda command: " ".join(command[2:3]))
def test_commands_parse_and_their_options_are_known(command):
    assert command[:2] == ["oneway", "audit"]
    if "--config" in command:  # which stands in the file before it on the page
        return
    told = AUDIT.make_context("audit", command[2:]).params
    check_options(told["defense"], parse_options(told["option"], "--option"))
    model = told["model"]
    options = parse_options(told["model_option"], "--model-option")
    kind = ENDPOINT if model.startswith("https:") else FILES.get(Path(model).suffix)
    known = inspect.signature(kind.open).parameters if kind else {}
    assert options.keys() <= set(known)


def test_all_input_transforms_are_said_and_how_many_they_are():
    said = section("Attackers").split("**Input transforms.**")[1].split("**Convergence.**")[0]
    assert set(re.findall(r"^- `([a-z-]+)`:", said, flags=re.MULTILINE)) == set(
        FULL_AUDIT_TRANSFORMS
    )
    assert (
        f"{['one', 'two', 'three', 'four', 'five'][len(FULL_AUDIT_TRANSFORMS) - 1]} transforms"
        in said
    )


def test_all_controls_and_their_thresholds_are_said():
    said = section("Controls")
    assert all(f"`{name}`" in said for name in CONTROLS)
    for threshold in (f"at most {BROKEN_BELOW:g}", f"at least {HOLDS_ABOVE:g}"):
        assert f"G {threshold}" in said
    assert f"at least {READ_ABOVE:g} of the label-only error" in said
    least = f"At least {LEAST_AUXILIARY} auxiliary rows and {LEAST_TEST} test queries"
    assert least in section("The data")


def test_what_is_left_out_stands_in_the_order_of_the_plan():
    settings = AuditSettings()
    everyone = ("label-only", "static", "retrained", "averaging", "adversarial-training")
    full = AuditPlan(
        attacks=(*everyone, "optimising"),
        input_transforms=settings.input_transforms,
        widths=settings.widths,
        repeats=settings.repeats,
        most_epochs=settings.most_epochs,
        controls=tuple(CONTROLS),
        seeds=settings.seeds,
        auxiliary=8000,
        detection=True,
    )
    # So slow that nothing fits: all steps are taken. The first one is undone by the last but one.
    prices = dict.fromkeys(itertools.product(FULL_AUDIT_TRANSFORMS, settings.widths), 1.0)
    plan = make_plan(full, Costs(prices, 1.0, 1.0, 1.0, 8000, 8000, 64), 1.0)
    steps = re.findall(r"^(\d+)\. (.+)$", section("Attackers"), flags=re.MULTILINE)
    marks = (
        *(
            "decoders of width 16",
            "optimising",
            "averaging of more than 10 answers",
            "seeds",
            "faithful",
        ),
        *("detection limit", "adversarial-training", "width", "auxiliary rows", "all decoders"),
    )
    assert [mark in said for mark, (_, said) in zip(marks, steps, strict=True)] == [True] * 10
    assert "width 32" in steps[7][1]
    # Seeds may be run in the end, and are counted then.
    marks = (*marks[1:3], *marks[4:-2], "all decoders", "controls", "auxiliary rows")
    assert [mark in said for mark, said in zip(marks, plan.left_out, strict=True)] == [True] * 9
    assert plan.auxiliary == 250


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    torch.manual_seed(0)
    images = torch.rand(LEAST_AUXILIARY + LEAST_TEST, 1, 8, 8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    auxiliary, test = images.split([LEAST_AUXILIARY, LEAST_TEST])
    settings = AuditSettings(
        seeds=1, controls=False, input_transforms=("standardized",), widths=(1,), first_epochs=1,
        most_epochs=1,
    )  # fmt: skip
    store = Store(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pacing, "TIMED_SECONDS", 0)
        return ModelAudit(AuditTarget(TorchTarget(model), auxiliary, test), store, settings).run()


def test_keys_of_the_record_are_those_of_the_page(outcome):
    rows = re.findall(r"^\| (`[^|]+) \| (.+) \|$", section("What is written"), flags=re.MULTILINE)
    keys = {key: said for names, said in rows for key in re.findall(r"`(\w+)`", names)}
    record = outcome.record.to_json()
    whole = AuditRecord(inversion=outcome.record).to_json()
    assert keys.keys() == whole.keys() | record.keys()
    parts = ("plan", "baselines", "environment", "provenance", "examples", "understanding")
    for part in parts:
        assert set(re.findall(r"`(\w+)`", keys[part])) == record[part].keys(), part


def test_columns_of_the_queries_are_those_of_the_page(outcome):
    said = (
        section("What is written").split("**`queries.parquet`**")[1].split("**`pictures.npz`**")[0]
    )
    assert set(re.findall(r"`(\w+)`", said)) == set(outcome.queries)

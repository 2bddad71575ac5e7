"""The audit against thieves: exact at both ends of the scale, and no gap where there is none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invoking import invoke
from oneway.attacks.stealing import STEALING_ATTACKS, ThiefKnowledge
from oneway.attacks.stealing.soft_labels import SoftLabels
from oneway.auditing import AuditTarget
from oneway.auditing.stealing import (
    CLEAN,
    LABEL,
    LEAST_STEPS,
    RELEASED,
    StealingAudit,
    StealingRecord,
    StealingSettings,
    _cell_means,
)
from oneway.defenses import build_defense
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import InvalidOptionError, OverlappingSplitsError
from oneway.evaluation import Store
from oneway.evaluation.settings import ReleaseSpec
from oneway.report.threats import stealing_gap, stealing_headline
from oneway.targets import TorchTarget

SETTINGS = StealingSettings(budgets=(40,), seeds=1, steps=20)


@pytest.fixture(scope="module")
def audited() -> AuditTarget:
    """A linear model of 10 entries and 6 classes, which scores give away and labels do not."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(4 * torch.randn(parameter.shape, generator=generator))
        model[1].bias.copy_(-model[1].weight.sum(-1) / 2)
    rows = torch.rand(1000, 10, generator=generator)
    labels = model(rows[400:]).argmax(-1)
    return AuditTarget(TorchTarget(model), rows[:400], rows[400:], labels=labels)


def run(audited: AuditTarget, folder: Path, **options: object) -> StealingRecord:
    return StealingAudit(audited, Store(folder), SETTINGS, **options).run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def undefended(audited: AuditTarget, folder: Path) -> StealingRecord:
    return run(replace(audited, guard=Identity()), folder)


def test_clean_scores_are_stolen_exactly_and_hide_nothing(undefended: StealingRecord) -> None:
    (result,) = undefended.budgets
    fidelity = result.thefts[CLEAN].fidelity
    assert (fidelity.estimate, fidelity.high) == (1, 1)
    # Of a copy that is right of 600 queries this often, all 600 are right in 2.5 % of samples.
    assert fidelity.low**600 == pytest.approx(0.025)
    assert result.thefts[CLEAN].accuracy == 1
    assert result.thefts[CLEAN].thief == "equation-solving, least squares"
    assert result.thefts[CLEAN].score_error < 1e-3
    assert result.gain.low > 0.05
    assert result.gap is not None
    assert result.gap.estimate == 0
    assert "not certain that the release hinders" in result.verdict


@pytest.mark.usefixtures("undefended")
def test_labels_alone_close_the_whole_gap(audited: AuditTarget, folder: Path) -> None:
    (result,) = run(replace(audited, guard=LabelOnly()), folder).budgets
    assert result.gap is not None
    assert result.gap.estimate == 1
    assert "most" in result.verdict


def test_what_was_stolen_before_is_not_stolen_again(
    audited: AuditTarget,
    undefended: StealingRecord,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def counted(attack: SoftLabels, _: ThiefKnowledge) -> dict[str, object]:
        seen.append(attack.name)
        return {}

    monkeypatch.setattr(SoftLabels, "run", counted)
    record = run(replace(audited, guard=build_defense("rounding", {"decimals": 1})), folder)
    assert len(seen) == 1
    before = undefended.budgets[0].thefts
    assert record.budgets[0].thefts[CLEAN] == before[CLEAN]
    assert record.budgets[0].thefts[LABEL] == before[LABEL]
    assert RELEASED in record.budgets[0].thefts
    assert run(replace(audited, guard=Identity()), folder).budgets == undefended.budgets
    assert len(seen) == 1


def test_an_interrupted_audit_of_a_random_release_goes_on_with_the_same_answers(
    audited: AuditTarget, tmp_path: Path
) -> None:
    noisy = replace(audited, release=ReleaseSpec("noise", "gaussian-noise", {}))

    def budgets(folder: str, seeds: int) -> tuple[object, ...]:
        settings = StealingSettings(budgets=(40,), seeds=seeds, steps=2)
        return StealingAudit(noisy, Store(tmp_path / folder), settings).run().budgets

    budgets("interrupted", 1)
    assert budgets("interrupted", 2) == budgets("at once", 2)


def test_what_does_not_fit_in_the_time_is_left_out_for_all_releases_and_named(
    audited: AuditTarget, tmp_path: Path
) -> None:
    settings = StealingSettings(budgets=(40, 80), seeds=2, steps=1500)
    record = StealingAudit(audited, Store(tmp_path), settings).run(seconds=0.0)
    assert record.budgets == ()
    steps = record.settings.steps
    assert LEAST_STEPS <= steps < 2 * LEAST_STEPS
    assert record.left_out == (
        f"{1500 - steps:,} of 1,500 training steps of each copy",
        "2 of 2 seeds with 40 queries",
        "2 of 2 seeds with 80 queries",
    )
    assert stealing_headline(record).stamp == "Not measured"
    assert stealing_gap(record).claimed is None


def test_where_scores_add_nothing_there_is_nothing_to_defend(
    audited: AuditTarget, tmp_path: Path
) -> None:
    labels_already = replace(
        audited, target=lambda rows: LabelOnly()(audited.target.logits(rows)).softmax(-1)
    )
    (result,) = run(
        replace(labels_already, release=ReleaseSpec("as it is", "none")), tmp_path
    ).budgets
    assert result.gap is None
    assert "nothing to defend" in result.verdict


def test_a_thief_beyond_its_budget_is_refused(
    audited: AuditTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greedy(SoftLabels):
        def run(self, knowledge: ThiefKnowledge) -> dict[str, object]:
            knowledge.ask(knowledge.own[: knowledge.budget])
            return {"greedy": knowledge.ask(knowledge.own[:1])}

    for name in STEALING_ATTACKS:
        monkeypatch.setitem(STEALING_ATTACKS, name, Greedy())
    with pytest.raises(InvalidOptionError, match="may ask 40 queries, but asked 41"):
        run(audited, tmp_path)


def test_bad_input_is_refused_before_any_query(audited: AuditTarget, tmp_path: Path) -> None:
    def unasked(_: Tensor) -> Tensor:
        pytest.fail("it was asked")

    target = replace(audited, target=unasked)
    with pytest.raises(InvalidOptionError, match="ask 401 queries need as many"):
        StealingAudit(target, Store(tmp_path), StealingSettings(budgets=(401,)))
    with pytest.raises(OverlappingSplitsError):
        StealingAudit(target, Store(tmp_path), SETTINGS, public=audited.test)
    with pytest.raises(InvalidOptionError, match="at least one value"):
        StealingSettings(budgets=())


def test_means_of_cells_are_of_all_queries_with_the_same_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(60, 3, generator=generator).softmax(-1)
    vectors = torch.eye(3) * 0.5 + 0.2
    cells = torch.arange(60) % 2
    cells[:3] = 2  # too few to be a cell
    mean = _cell_means(vectors[cells], clean)
    assert mean is not None
    for cell in (0, 1):
        expected = clean[cells == cell].mean(0)
        torch.testing.assert_close(mean(vectors[cell : cell + 1])[0], expected)
    other = torch.tensor([[0.1, 0.2, 0.7]])
    assert (mean(other) == other).all()
    assert (mean(vectors[2:]) == vectors[2:]).all()
    assert _cell_means(clean, clean) is None


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning")
def test_the_command_writes_prints_and_judges(
    audited: AuditTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untrained(*_: object) -> object:
        return lambda _, answers: lambda rows: rows.flatten(1)[:, : answers.shape[-1]]

    monkeypatch.setattr("oneway.auditing.stealing.copy_trainer", untrained)
    for name, rows in (("own", audited.auxiliary), ("queries", audited.test)):
        np.savez(tmp_path / f"{name}.npz", images=rows.view(-1, 1, 2, 5).numpy())
    module = audited.target.module
    torch.jit.trace(module, torch.rand(2, 1, 2, 5)).save(tmp_path / "model.pt")

    def run_command(*options: str) -> object:
        words = ["audit", str(tmp_path / "model.pt"), "--outputs", "logits", "--seeds", "1"]
        words += ["--attacker-data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "out")]
        words += ["--cache", str(tmp_path / "cache"), *options]
        return invoke(*words)

    asked = ["--queries", str(tmp_path / "queries.npz"), "--threats", "stealing", "--budget", "40"]
    done = run_command(*asked, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert json.loads(done.stdout) == record
    assert record["stealing"]["budgets"][0]["thefts"]["release"]["fidelity"]["estimate"] == 1
    assert run_command(*asked, "--require-gap", "0.5").exit_code == 1
    guarded = run_command(*asked, "--defense", "label-only", "--require-gap", "0.99")
    assert guarded.exit_code == 0, guarded.output
    printed = " ".join(guarded.stdout.split())
    assert "hides most" in printed
    assert "Plan: stealing: thieves with 40 queries, up to 1 seeds" in printed
    for words, message in (
        (asked[2:], "--queries must be given"),
        (["--budget", "7", *asked[:2]], "--budget is for the threat 'stealing'"),
    ):
        refused = run_command(*words)
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())

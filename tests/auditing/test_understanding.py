"""What an audit understood is what is there, and said before any attack."""

import dataclasses

import pytest
import torch

from auditing.audits import COLUMNS, RecordScores, Scores, black_box, records, subject_of
from oneway.auditing import AuditTarget, understand, unexplained_flags
from oneway.auditing.audit_target import ask
from oneway.auditing.understanding import CHECK_ORDER
from oneway.defenses.identity import Identity
from oneway.evaluation import Flag
from oneway.report.audit import understanding_lines, understanding_tables
from oneway.targets import TorchTarget


class Named(TorchTarget):
    class_names = ("left", "middle", "right")


def test_classes_are_named_and_counted_in_each_file():
    audited = subject_of(Named(Scores()))
    named = dataclasses.replace(
        audited, labels=torch.zeros_like(audited.labels), notes=("own: 1 broken link left out",)
    )
    understood = understand(named)
    counts = [(row.name, row.auxiliary, row.test) for row in understood.classes]
    assert counts == [("left", None, 100), ("middle", None, 0), ("right", None, 0)]
    assert understood.scores.startswith("3 logits")
    assert "8 x 8 pixels, 1 channel" in understood.queries
    shown = "\n".join(understanding_lines(understood))
    assert "own: 1 broken link left out" in shown
    assert "names from the model" in shown


def test_a_low_accuracy_asks_for_a_look_at_the_order_of_the_classes():
    audited = subject_of(Named(Scores()))
    right = audited.target(audited.test).argmax(-1)
    for labels, asked in ((right, False), ((right + 1) % 3, True)):
        understood = understand(dataclasses.replace(audited, labels=labels))
        assert understood.accuracy == float(not asked)
        assert (CHECK_ORDER in understood.notes) == asked


def test_columns_of_records_are_listed_with_their_kind_and_content():
    audited = AuditTarget(
        TorchTarget(RecordScores()), records(200, 0), records(60, 1), columns=COLUMNS
    )
    understood = understand(audited)
    facts = [(column.name, column.kind, column.content) for column in understood.columns]
    assert facts == [
        ("age", "numeric", "0 to 1"),
        ("income", "numeric", "0 to 1"),
        ("sex", "categorical", "2 categories"),
        ("city", "categorical", "3 categories"),
    ]
    assert understood.accuracy is None
    assert len(understanding_tables(understood)) == 2


def test_accuracy_is_that_of_queries_from_the_whole_file():
    audited = subject_of()
    right = audited.target(audited.test).argmax(-1)
    half = torch.where(torch.arange(len(right)) < len(right) // 2, right, (right + 1) % 3)
    understood = understand(dataclasses.replace(audited, labels=half))
    assert understood.accuracy == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shift", [0, 1])
def test_labels_in_another_order_than_the_models_are_flagged(shift):
    audited = subject_of(black_box())
    labels = (audited.target(audited.test).argmax(-1) + shift) % 3
    flags = ask(dataclasses.replace(audited, labels=labels), Identity()).flags
    raised = "accuracy-below-majority" in {flag.name for flag in flags}
    assert raised == (shift == 1)


def test_few_seeds_on_purpose_are_explained_and_nothing_else_is():
    flags = [Flag("too-few-seeds", ""), Flag("ties-or-zeros", "")]
    left = unexplained_flags(flags, 1, run=1, blind=False)
    assert [flag.name for flag in left] == ["ties-or-zeros"]
    assert unexplained_flags(flags, 3, run=3, blind=False) == flags


def test_fewer_seeds_than_were_asked_for_are_not_on_purpose():
    few = [Flag("too-few-seeds", "")]
    assert unexplained_flags(few, 2, run=2, blind=False) == []
    assert unexplained_flags(few, 2, run=1, blind=False) == few


def test_attackers_who_fail_are_explained_unless_they_are_blind():
    failed = Flag("attack-failed", "of an attacker", "retrained")
    assert unexplained_flags([failed], 3, run=3, blind=False) == []
    assert unexplained_flags([failed], 3, run=3, blind=True) == [failed]

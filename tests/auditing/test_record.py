"""The record of an audit comes back as it was written, and nothing else is taken for one."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditing.audits import Scores, black_box, subject_of
from laws import looped
from oneway.auditing import AuditPlan, InversionRecord
from oneway.errors import CorruptDataError
from oneway.evaluation import Flag
from oneway.evaluation.records import SCHEMA, BaselineErrors, weights_hash
from oneway.metrics import Interval
from oneway.targets import TorchTarget
from planted_records import ENVIRONMENT, PROVENANCE
from typed_values import values_of

RECORD = InversionRecord(
    release="noise",
    defense="adversarial-noise",
    options={"step_size": 0.5, "norm": "inf"},
    auxiliary=3000,
    queries=1000,
    classes=10,
    shape=(1, 28, 28),
    plan=AuditPlan(
        attacks=("label-only", "static", "retrained"),
        input_transforms=("standardized", "faithful"),
        widths=(16, 32),
        repeats=(10, 100),
        most_epochs=48,
        controls=("identity",),
        seeds=3,
        auxiliary=3000,
        left_out=("2 of 3 seeds",),
    ),
    seeds=(0,),
    stopped=None,
    errors={"label-only": 0.06, "static": 0.03, "retrained": 0.02},
    reconstructors={"label-only": "mean image", "static": "decoder", "retrained": "decoder"},
    strongest=("retrained",),
    baselines=BaselineErrors(0.015, 0.06, 0.08),
    adaptive_error=0.02,
    closed_gap=0.1,
    closed_gap_by_seed=(0.1,),
    closed_gap_interval=Interval(0.05, 0.1, 0.15),
    closed_gap_least_confident=0.2,
    closed_gap_least_confident_interval=Interval(float("-inf"), 0.2, float("inf")),
    least_confident_queries=50,
    label_changes=0,
    keeps_label=True,
    random=False,
    controls={},
    void=False,
    flags=(Flag("attack-failed", "static failed", "static"),),
    privacy={},
    reidentified={},
    utility={},
    defender_training_seconds=1.5,
    examples={},
    seconds=90.0,
    environment=ENVIRONMENT,
    provenance=PROVENANCE,
)
VALUES = RECORD.to_json()


@settings(max_examples=20)
@given(values_of(InversionRecord, schema=st.just(SCHEMA)))
def test_a_record_that_is_read_back_is_the_record_that_was_written(record):
    text = json.dumps(record.to_json(), allow_nan=False)
    assert text.startswith(f'{{"schema": {SCHEMA}, ')
    assert InversionRecord.from_json(json.loads(text), "here") == record


def test_infinite_ends_of_an_interval_are_text_in_the_file_and_numbers_again():
    interval = VALUES["closed_gap_least_confident_interval"]
    assert interval == {"low": "-inf", "estimate": 0.2, "high": "inf"}
    assert InversionRecord.from_json(json.loads(json.dumps(VALUES)), "here") == RECORD


@looped(
    ("changes", "reason"),
    [
        ({"schema": 1}, "schema 2, but has 1"),
        ({"schema": None}, "schema 2, but has None"),
        ({"floors": {}}, "unknown key in the record 'floors'"),
        ({"void": 0}, "the record.void must be bool, but is int"),
        ({"closed_gap_interval": [0, 1]}, "the record.closed_gap_interval must be a table"),
        ({"plan": {"attacks": []}}, "the record.plan lacks the key 'input_transforms'"),
        ({"closed_gap_by_seed": ["a"]}, r"closed_gap_by_seed\[0\] must be float, but is str"),
        ({"controls": {"identity": {"passed": 1}}}, "the record.controls.identity lacks the key"),
        ({"flags": [{"name": "voied", "detail": "", "attack": None}]}, "unknown flag 'voied'"),
    ],
)
def test_what_is_no_record_of_this_form_is_refused_with_its_place_and_remedy(changes, reason):
    refusal = rf"^audit\.json must be a record.*{reason}.*Make it again with this version of"
    with pytest.raises(CorruptDataError, match=refusal):
        InversionRecord.from_json(VALUES | changes, "audit.json")


def test_a_missing_key_is_refused_whichever_it_is():
    later = {
        *("attack_failed", "clean_convergence", "closed_gap_at_least", "convergence"),
        *(
            "detection_limit",
            "embedder",
            "groups",
            "guard_version",
            "matching",
            "numerics",
            "schema",
            "understanding",
        ),
    }
    for key in VALUES.keys() - later:
        rest = {name: value for name, value in VALUES.items() if name != key}
        with pytest.raises(CorruptDataError, match=f"lacks the key '{key}'"):
            InversionRecord.from_json(rest, "audit.json")
    rest = {name: value for name, value in VALUES.items() if name != "schema"}
    with pytest.raises(CorruptDataError, match="schema 2, but has 'none'"):
        InversionRecord.from_json(rest, "audit.json")


def test_the_hash_of_the_model_is_its_files_or_its_weights_or_there_is_none():
    network, other = Scores(), Scores()
    other.shapes[0, 0] += 1e-3
    prints = [subject_of(TorchTarget(module)).model_fingerprint() for module in (network, other)]
    assert prints == [weights_hash(network), weights_hash(other)]
    assert prints[0] != prints[1]
    assert subject_of(TorchTarget(network), model_hash="of a file").model_fingerprint() == (
        "of a file"
    )
    assert subject_of(black_box()).model_fingerprint() is None
    assert subject_of(black_box(), model_hash="of a file").model_fingerprint() == "of a file"

"""A model of a table's own values, asked about encoded records, defended and attacked."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from oneway.contracts import ScoredTarget, Target
from oneway.data.tables import RecordEncoding, load_records
from oneway.defenses.adversarial_noise import AdversarialNoise
from oneway.errors import InvalidTensorError
from oneway.inversion import RecordInverter, TrainingSettings, train_inverter
from oneway.targets import CallableTarget, DefendedTarget, TorchTarget
from oneway.targets.records import records_target
from optional import later

pandas = later("pandas")
make_column_transformer = later("sklearn.compose:make_column_transformer")
load_breast_cancer = later("sklearn.datasets:load_breast_cancer")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
make_pipeline = later("sklearn.pipeline:make_pipeline")
OneHotEncoder = later("sklearn.preprocessing:OneHotEncoder")
StandardScaler = later("sklearn.preprocessing:StandardScaler")

GENERATOR = np.random.default_rng(0)
TABLE = {
    "age": GENERATOR.integers(18, 90, 60),
    "job": GENERATOR.choice(["baker", "cook", "smith"], 60),
    "income": GENERATOR.lognormal(8, 2, 60),
}
LABELS = (TABLE["age"] + 20 * (TABLE["job"] == "cook") > 55).astype(int)
ENCODING = RecordEncoding.fit(TABLE)
QUERIES = ENCODING.encode(TABLE)


def matrix() -> np.ndarray:
    codes = np.unique(TABLE["job"], return_inverse=True)[1]
    return np.stack([TABLE["age"], codes, TABLE["income"]], 1)


def test_a_pipeline_of_matrices_is_asked_about_the_very_records():
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(matrix(), LABELS)
    target = records_target(CallableTarget(pipeline.predict_proba), ENCODING.decode)
    assert isinstance(target, Target)
    assert not isinstance(target, ScoredTarget)
    expected = torch.from_numpy(pipeline.predict_proba(matrix())).float()
    torch.testing.assert_close(target(QUERIES), expected)


def test_a_pipeline_of_frames_is_asked_about_the_very_records():
    frame = pandas.DataFrame(TABLE)
    pipeline = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["job"]), remainder=StandardScaler()),
        LogisticRegression(),
    ).fit(frame, LABELS)
    target = CallableTarget(lambda rows: pipeline.predict_proba(ENCODING.decode_frame(rows)))
    expected = torch.from_numpy(pipeline.predict_proba(frame)).float()
    torch.testing.assert_close(target(QUERIES), expected)


def test_a_network_of_float32_has_its_logits_at_hand():
    module = nn.Linear(3, 4)
    target = records_target(TorchTarget(module), partial(ENCODING.decode, dtype=np.float32))
    assert isinstance(target, ScoredTarget)
    expected = module(torch.from_numpy(matrix()).float()).detach()
    torch.testing.assert_close(target.logits(QUERIES), expected)
    torch.testing.assert_close(target(QUERIES), expected.softmax(-1))


def test_what_cannot_be_decoded_or_was_decoded_to_other_rows_is_refused():
    target = records_target(CallableTarget(lambda rows: rows), ENCODING.decode)
    with pytest.raises(InvalidTensorError, match=r"shape \(N, 5\), but got \(2, 4\)"):
        target(torch.zeros(2, 4))
    with pytest.raises(InvalidTensorError, match="finite"):
        target(torch.full((2, 5), torch.nan))
    short = records_target(CallableTarget(lambda rows: rows), lambda records: records[:1])
    with pytest.raises(InvalidTensorError, match="one per row of scores, 2, but got 1"):
        short(torch.zeros(2, 5))


def test_a_decoder_recovers_more_of_patients_than_their_label_tells(tmp_path):
    """The whole way: a table, a model, a decoder, and the paper's noise against it."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    parts = {"private": order[:200], "auxiliary": order[200:450], "test": order[450:]}
    for name, rows in parts.items():
        np.savez(tmp_path / f"{name}.npz", x=x[rows], y=y[rows])
    auxiliary = load_records(tmp_path / "auxiliary.npz", label="y")
    private, test = (
        load_records(tmp_path / f"{name}.npz", label="y", encoding=auxiliary.encoding)
        for name in ("private", "test")
    )
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        auxiliary.encoding.decode(private.queries), private.labels.numpy()
    )
    target = records_target(CallableTarget(pipeline.predict_proba), auxiliary.encoding.decode)
    seen, asked = target(auxiliary.queries), target(test.queries)
    assert (asked.argmax(-1) == test.labels).float().mean() > 0.9

    torch.manual_seed(0)
    inverter = RecordInverter(2, auxiliary.encoding.length, width=2, input_transform="standardized")
    train_inverter(
        inverter,
        seen,
        auxiliary.encoded,
        settings=TrainingSettings(epochs=16, batch_size=32, averaging=0.9),
        generator=torch.Generator().manual_seed(0),
    )
    labels = seen.argmax(-1)
    means = torch.stack([auxiliary.encoded[labels == label].mean(0) for label in range(2)])
    by_label = (means[asked.argmax(-1)] - test.encoded).square().mean()
    by_scores = (inverter(asked) - test.encoded).square().mean()
    assert by_scores < 0.92 * by_label

    defended = DefendedTarget(target, AdversarialNoise(inverter, step_size=1.0))
    noisy = (inverter(defended(test.encoded)) - test.encoded).square().mean()
    assert noisy > 1.5 * by_scores
    assert torch.equal(defended(test.encoded).argmax(-1), target(test.encoded).argmax(-1))

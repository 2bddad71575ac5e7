"""LPA: what its generator promises, and what its training does to whoever trains on it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.contracts import TrainingData
from oneway.defenses.trained import Poisoning
from oneway.defenses.trained.poisoning import PoisonGenerator, label_means
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.inversion import Inverter, TrainingSettings, train_inverter
from rows import leads, random_rows, score_rows

CLASSES = 5


def told(rows, seed):
    """Images that say all that their logits say, up to a constant per row."""
    logits = random_rows(seed, rows, CLASSES, torch.float32, 2)
    mixing = random_rows(99, CLASSES, 64, torch.float32, 1)
    centered = logits - logits.mean(-1, keepdim=True)
    return (centered @ mixing / 3).sigmoid().view(rows, 1, 8, 8), logits


def training_data(rows=300, seed=0):
    """It has no private images and no target, so none can be used."""
    return TrainingData(None, None, None, *told(rows, seed))


def train(rows=300, seed=0, order=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Poisoning.train(
            training_data(rows),
            generator=torch.Generator().manual_seed(order),
            **{"epochs": 8, "helper_width": 4, "learning_rate": 3e-3, "hidden": 16} | options,
        )


def wild(budget, classes=CLASSES, seed=0):
    """Return a generator that points anywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PoisonGenerator(classes, budget=budget)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
    return network


@given(
    score_rows((torch.float32, torch.float64)), st.sampled_from([1e-3, 0.3, 1.0, 5.0]), st.data()
)
def test_label_and_budget_are_kept_wherever_the_generator_points(logits, budget, data):
    seed = data.draw(st.integers(0, 100))
    answer = Poisoning(wild(budget, logits.shape[-1], seed))(logits)
    assert leads(answer, logits.argmax(-1))
    distance = (answer.double().softmax(-1) - logits.double().softmax(-1)).abs().sum(-1)
    assert (distance <= budget + 2e-5).all()


def test_the_budget_is_spent_where_the_generator_points_beyond_it():
    logits = random_rows(1, 60, CLASSES, torch.float64, 2)
    answer = Poisoning(wild(0.2))(logits)
    distance = (answer.softmax(-1) - logits.softmax(-1)).abs().sum(-1)
    assert (distance <= 0.2 + 1e-12).all()
    assert ((distance - 0.2).abs() < 1e-9).double().mean() > 0.3


def test_no_budget_leads_beyond_where_the_generator_points():
    logits = random_rows(1, 60, CLASSES, torch.float64, 2)
    torch.testing.assert_close(Poisoning(wild(50.0))(logits), Poisoning(wild(2.0))(logits))


def test_a_constant_of_a_row_changes_nothing():
    logits = random_rows(1, 9, CLASSES, torch.float64, 3)
    defense = Poisoning(wild(0.3))
    torch.testing.assert_close(defense(logits + 7), defense(logits), rtol=1e-5, atol=1e-5)


def test_a_generator_is_rebuilt_from_its_architecture_and_weights():
    network, logits = wild(0.7), random_rows(1, 9, CLASSES, torch.float32, 3)
    again = PoisonGenerator(**network.architecture)
    again.load_state_dict(network.state_dict())
    assert torch.equal(Poisoning(again)(logits), Poisoning(network)(logits))


def fresh_error(defense):
    """Return what an inverter trained on released scores errs, over what the mean image does."""
    images, logits = told(400, seed=50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inverter = Inverter(CLASSES, (1, 8, 8), width=8, input_transform="standardized")
        errors = train_inverter(
            inverter,
            defense(logits).softmax(-1),
            images,
            settings=TrainingSettings(
                epochs=20, schedule="one-cycle", learning_rate=1e-2, batch_size=32
            ),
            generator=torch.Generator().manual_seed(0),
        )
    return min(errors) / float((images - images.mean(0)).square().mean())


@looped("wrong_image", ["mean", "permuted"])
def test_training_aligns_gradients_and_hurts_an_inverter_that_never_met_it(wrong_image):
    options = {"wrong_image": wrong_image, "hidden": 64, "epochs": 12, "learning_rate": 5e-3}
    idle, unmoved = train(budget=1e-6, **options)
    network, facts = train(budget=1.5, **options)
    assert facts["cosine"] > unmoved["cosine"] + 0.1
    assert 0.2 < facts["l1_mean"] <= 1.5
    assert not network.training
    # Measured: 0.03 and 0.55.
    assert fresh_error(Poisoning(network)) > 5 * fresh_error(Poisoning(idle))


def test_label_means_are_of_each_label_and_of_all_where_there_is_none():
    images, logits = told(60, seed=1)
    labels = logits.argmax(-1).clamp_max(CLASSES - 2)
    means = label_means(images, labels, CLASSES)
    for label in range(CLASSES - 1):
        torch.testing.assert_close(means[label], images[labels == label].mean(0))
    torch.testing.assert_close(means[CLASSES - 1], images.mean(0))


def test_seeds_decide_the_generator():
    options = {"rows": 40, "epochs": 2, "batch_size": 16}
    one, again, other, reordered = (
        torch.cat([value.flatten() for value in network.state_dict().values()])
        for network in (
            train(**options)[0],
            train(**options)[0],
            train(seed=1, **options)[0],
            train(order=1, **options)[0],
        )
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, reordered)


def test_training_passes_over_a_last_single_row_and_reports_its_progress():
    shares = []
    network, facts = train(33, epochs=4, batch_size=16, on_epoch=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert set(facts) == {"cosine", "l1_mean"}
    assert {type(value) for value in facts.values()} == {float}
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert isinstance(network, Poisoning.state_type)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidOptionError, match="2 auxiliary images or more, but there are 1"):
        train(1)
    with pytest.raises(InvalidTensorError, match=r"over the 5 classes.*\(2, 4\)"):
        Poisoning(wild(0.3))(torch.zeros(2, 4))

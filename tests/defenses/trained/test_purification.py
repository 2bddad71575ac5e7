"""PPF: what the purifier computes, what each term of its training does, and who moves whom."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from laws import looped
from oneway.contracts import TrainingData
from oneway.defenses.trained import Purification, purification
from oneway.defenses.trained.purification import Purifier
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.inversion import Inverter, TrainingSettings, train_inverter
from rows import lead_of, leads, random_rows

CLASSES = 5


def told(rows, seed):
    """Images that say all that their logits say, up to a constant per row."""
    logits = random_rows(seed, rows, CLASSES, torch.float32, 2)
    mixing = random_rows(99, CLASSES, 64, torch.float32, 1)
    centered = logits - logits.mean(-1, keepdim=True)
    return (centered @ mixing / 3).sigmoid().view(rows, 1, 8, 8), logits


def training_data(rows=400, seed=0):
    """What PPF may train with; it has no private images, so none can be used."""
    images, logits = told(rows, seed)
    return TrainingData(None, None, None, images, logits)  # type: ignore[arg-type]


def train(rows=400, seed=0, order=0, **options):
    given = {"epochs": 15, "helper_width": 8, "learning_rate": 3e-3} | options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Purification.train(
            training_data(rows, seed), generator=torch.Generator().manual_seed(order), **given
        )


def purifier(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Purifier(CLASSES, **options)
        nn.init.normal_(network.layers[1].running_mean)
        nn.init.uniform_(network.layers[1].running_var, 0.5, 2)
    return network.eval()


def test_a_purifier_ignores_a_constant_and_hands_it_back():
    network, logits = purifier(), random_rows(1, 9, CLASSES, torch.float64, 3)
    network = network.double()
    network.fit_scale(logits)
    shift = torch.arange(9.0).unsqueeze(-1)
    torch.testing.assert_close(network(logits + shift), network(logits) + shift)


def test_a_purifier_knows_no_unit():
    logits = random_rows(1, 9, CLASSES, torch.float64, 3)
    one, other = purifier().double(), purifier().double()
    one.fit_scale(logits)
    other.fit_scale(7 * logits)
    torch.testing.assert_close(other(7 * logits), 7 * one(logits))


def test_the_scale_is_the_standard_deviation_of_centered_logits():
    logits = random_rows(1, 9, CLASSES, torch.float32, 3)
    network = purifier()
    network.fit_scale(logits)
    plain = logits.numpy().astype(np.float64)
    centered = plain - plain.mean(-1, keepdims=True)
    assert float(network.scale) == pytest.approx(np.sqrt((centered**2).mean()), rel=1e-5)
    assert "scale" in network.state_dict()


def test_a_purifier_is_rebuilt_from_its_architecture_and_weights():
    network, logits = purifier(hidden=7), random_rows(1, 9, CLASSES, torch.float32, 3)
    network.fit_scale(logits)
    again = Purifier(**network.architecture).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(logits), network(logits))


def test_without_an_inverter_against_it_the_purifier_learns_to_be_the_identity():
    options = {"rows": 128, "inversion_weight": 0, "label_weight": 0}
    network, facts = train(epochs=150, **options)
    untrained, _ = train(epochs=1, **options, learning_rate=1e-9)
    assert facts["distance"] < 0.05
    assert facts["inversion_error"] == 0
    assert not network.training
    assert distance(network) < 0.1
    assert distance(untrained) > 0.5


@torch.no_grad()
def distance(network):
    """Return the mean squared change of fresh logits, over their variance."""
    _, logits = told(400, seed=77)
    return float((network(logits) - logits).square().mean() / logits.var())


def fresh_error(network):
    """Return what an inverter trained on purified scores errs, over what the mean image does."""
    images, logits = told(600, seed=50)
    with torch.no_grad():
        shown = network(logits).softmax(-1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inverter = Inverter(CLASSES, (1, 8, 8), width=8, input_transform="standardized")
        errors = train_inverter(
            inverter,
            shown,
            images,
            settings=TrainingSettings(
                epochs=25, schedule="one-cycle", learning_rate=1e-2, batch_size=32
            ),
            generator=torch.Generator().manual_seed(0),
        )
    return min(errors) / float((images - images.mean(0)).square().mean())


def test_the_inversion_term_raises_the_error_of_an_inverter_that_never_met_the_purifier():
    plain, hiding = (train(inversion_weight=weight)[0] for weight in (0, 3.0))
    # Measured: 0.015 and 0.37, the clean scores themselves 0.012.
    low, high = fresh_error(plain), fresh_error(hiding)
    assert low < 0.05
    assert high > 4 * low


def test_the_inversion_term_raises_the_helper_s_error_and_costs_distance():
    idle, hiding = (train(inversion_weight=weight)[1] for weight in (1e-6, 3.0))
    assert hiding["inversion_error"] > 2 * idle["inversion_error"]
    assert hiding["distance"] > 2 * idle["distance"]


def test_the_label_term_raises_the_score_of_the_clean_label():
    loose, strict = (train(inversion_weight=0, label_weight=weight)[1] for weight in (0, 5.0))
    assert strict["cross_entropy"] < 0.75 * loose["cross_entropy"]


@pytest.fixture
def helpers(monkeypatch):
    """Each helper as it was built, with all that it was shown."""
    made = []

    class Watched(Inverter):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.shown = []
            made.append((self, copy.deepcopy(self.layers), self.shown))

        def forward(self, confidences):
            self.shown.append(confidences)
            return super().forward(confidences)

    monkeypatch.setattr(purification, "build_inverter", Watched)
    return made


def test_the_helper_is_moved_by_its_own_steps_alone(helpers):
    rows, batch_size, rate = 40, 10, 1e-2
    train(
        rows,
        epochs=3,
        batch_size=batch_size,
        learning_rate=rate,
        inversion_weight=5.0,
        helper_width=4,
    )
    [(helper, layers, shown)] = helpers
    own, against = shown[::2], shown[1::2]
    assert len(own) == len(against) == 3 * rows // batch_size
    assert not any(confidences.requires_grad for confidences in own)
    assert all(confidences.requires_grad for confidences in against)
    # Both see the same scores of a batch: the purifier steps after the helper.
    assert all(map(torch.equal, own, (one.detach() for one in against)))
    # Training a copy of it on these scores, and on nothing else, gives the same weights.
    order = torch.Generator().manual_seed(0)
    images, _ = told(rows, 0)
    batches = [
        batch for _ in range(3) for batch in torch.randperm(rows, generator=order).split(batch_size)
    ]
    steps = torch.optim.Adam(layers.parameters(), lr=rate, betas=(0.5, 0.999))
    for confidences, batch in zip(own, batches, strict=True):
        steps.zero_grad()
        guess = layers(helper.input_transform(confidences))
        functional.mse_loss(guess, images[batch]).backward()
        steps.step()
    for trained, expected in zip(helper.layers.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-6)


def test_without_an_inversion_weight_no_helper_is_asked(helpers):
    train(40, epochs=1, inversion_weight=0)
    assert [shown for _, _, shown in helpers if shown] == []


def test_seeds_decide_the_purifier():
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


def test_training_leaves_its_material_alone_and_reports_its_progress():
    given = training_data(40)
    before = given.auxiliary_images.clone(), given.auxiliary_logits.clone()
    shares = []
    network, facts = Purification.train(
        given,
        generator=torch.Generator().manual_seed(0),
        epochs=4,
        helper_width=4,
        on_epoch=shares.append,
    )
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert set(facts) == {"distance", "cross_entropy", "inversion_error"}
    assert {type(value) for value in facts.values()} == {float}
    assert torch.equal(given.auxiliary_images, before[0])
    assert torch.equal(given.auxiliary_logits, before[1])
    assert isinstance(network, Purification.state_type)


@looped("weight", [0.0, 1.0])
def test_a_last_batch_of_one_row_is_passed_over(weight):
    network, _ = train(33, epochs=1, batch_size=16, inversion_weight=weight, helper_width=4)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


@looped("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@looped("seed", range(3))
def test_the_label_is_lifted_and_nothing_else_where_it_is_to_be_kept(dtype, seed):
    network, logits = purifier(seed), random_rows(seed, 60, CLASSES, dtype, 3)
    logits[0] = 0
    labels = logits.argmax(-1)
    free = Purification(network)(logits)
    kept = Purification(network, keep_label=True, margin=0.25)(logits)
    assert free.dtype == kept.dtype == dtype
    assert not torch.equal(free.argmax(-1), labels)
    assert leads(kept, labels)
    index = labels.unsqueeze(-1)
    assert torch.equal(kept.scatter(-1, index, 0), free.scatter(-1, index, 0))
    assert (lead_of(kept, labels) > 0.25 - 4 * torch.finfo(dtype).eps * kept.abs().max()).all()


@torch.no_grad()
def test_what_is_released_is_what_the_network_makes_of_the_clean_scores():
    network, logits = purifier(), random_rows(1, 9, CLASSES, torch.float32, 3)
    defense = Purification(network.train())
    assert torch.equal(defense(logits), network.eval()(logits))
    assert not defense(logits.requires_grad_()).requires_grad
    assert (defense.requires_input, defense.keeps_label, defense.deterministic) == (
        False,
        False,
        True,
    )
    assert Purification(network, keep_label=True).keeps_label


def test_sizes_outside_their_range_are_refused():
    with pytest.raises(InvalidOptionError, match="num_classes must be"):
        Purifier(1)


def test_auxiliary_images_and_logits_come_in_pairs():
    given = training_data(20)
    apart = TrainingData(None, None, None, given.auxiliary_images[1:], given.auxiliary_logits)
    with pytest.raises(InvalidTensorError, match="one per row of scores, 20, but got 19"):
        Purification.train(apart, generator=torch.Generator())

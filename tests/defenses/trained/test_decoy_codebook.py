"""The codebook with decoys: surrogates of its own, and everything else as without."""

import inspect

import pytest
import torch

from oneway.contracts import TrainingData
from oneway.defenses.codebook import CodebookRelease, DecoyOptions, plant_decoys
from oneway.defenses.trained import DecoyCodebook, decoy_codebook
from oneway.errors import InvalidOptionError
from oneway.inversion import build_inverter, train_inverter
from rows import leads, random_rows

CLASSES, SHAPE = 3, (1, 8, 8)
FITTED = {"min_members": 10, "rate_weight": 0.01}
SMALL = {"decoy_l1": 0.2, "decoy_steps": 10, "surrogate_width": 4, "surrogate_epochs": 1}


def scored(seed, count):
    """Images whose brightness the scores tell, of three labels."""
    logits = random_rows(seed, count, CLASSES, torch.float32, 2)
    bright = logits.softmax(-1) @ torch.tensor([0.1, 0.5, 0.9])
    noise = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return logits, 0.9 * bright.view(-1, 1, 1, 1) + 0.1 * noise


def training_data(with_own=True):
    logits, images = scored(1, 300)
    own_logits, own_images = scored(2, 400)
    own = {"calibration_images": own_images, "calibration_logits": own_logits}
    return TrainingData(None, None, None, images, logits, **(own if with_own else {}))


def train(given=None, seed=0, kind=DecoyCodebook, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind.train(
            given or training_data(),
            generator=torch.Generator().manual_seed(seed),
            **({**FITTED, **SMALL} if kind is DecoyCodebook else FITTED) | options,
        )


@pytest.fixture(scope="module")
def trained():
    return train()


def told_by(book):
    return book.expand(book.values, torch.arange(book.sizes.cells))


def test_codewords_alone_differ_from_a_codebook_fitted_to_the_same(trained, monkeypatch):
    drawn = []

    def watched(*args, generator, **options):
        drawn.append(generator)
        return train_inverter(*args, generator=generator, **options)

    def untouched(book, scores, queries, surrogates, *, l1_budget, steps):
        drawn.append((len(scores), len(queries), l1_budget, steps, len(surrogates)))
        return book

    book, figures = trained
    with monkeypatch.context() as patch:
        patch.setattr(decoy_codebook, "train_inverter", watched)
        patch.setattr(decoy_codebook, "plant_decoys", untouched)
        plain, plain_figures = train()
    # What is fitted to are the operator's queries, but for those that certify.
    assert drawn[-1] == (320, 320, 0.2, 10, 3)
    assert len(drawn) == 4
    for name, tensor in plain.state_dict().items():
        assert torch.equal(book.state_dict()[name], tensor) == (name != "values")
    moved = (told_by(book) - told_by(plain)).abs().sum(-1)
    assert (moved <= 0.2 + 1e-9).all()
    assert (moved > 0.01).all()
    assert book.fault() is None
    # Cells are the same, and so are error and bits.
    assert figures == plain_figures
    assert figures["certified_queries"] == 80


def test_surrogates_learn_on_auxiliary_scores_one_per_input_transform(monkeypatch):
    built, learned = [], []

    def build(classes, shape, **options):
        built.append((classes, tuple(shape), options))
        return build_inverter(classes, shape, **options)

    def learn(surrogate, confidences, images, *, settings, generator):
        learned.append((confidences, images, settings.epochs))
        return train_inverter(
            surrogate, confidences, images, settings=settings, generator=generator
        )

    monkeypatch.setattr(decoy_codebook, "build_inverter", build)
    monkeypatch.setattr(decoy_codebook, "train_inverter", learn)
    train(surrogate_epochs=2)
    assert [options["input_transform"] for *_, options in built] == list(
        decoy_codebook.SURROGATE_TRANSFORMS
    )
    assert {options["width"] for *_, options in built} == {4}
    assert {(classes, shape) for classes, shape, _ in built} == {(CLASSES, SHAPE)}
    given = training_data()
    for confidences, images, epochs in learned:
        assert torch.equal(confidences, given.auxiliary_logits.softmax(-1))
        assert torch.equal(images, given.auxiliary_images)
        assert epochs == 2


def test_what_is_trained_is_released_as_a_codebook_is(trained):
    book, _ = trained
    asked = scored(3, 200)[0]
    release = DecoyCodebook(book)
    assert isinstance(release, CodebookRelease)
    assert (release.requires_input, release.keeps_label, release.deterministic) == (
        False,
        True,
        True,
    )
    told = release(asked)
    assert leads(told, asked.argmax(-1))
    assert len(told.unique(dim=0)) <= book.sizes.cells


def test_without_queries_of_the_operator_s_auxiliary_ones_are_fitted_to():
    book, figures = train(training_data(with_own=False), held_out=0.5)
    assert figures["certified_queries"] == 150
    assert int(book.members.sum()) == 150


def test_seeds_decide_it_and_progress_is_reported(trained):
    shares = []
    again, _ = train(on_epoch=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    for name, tensor in trained[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    other, _ = train(seed=1)
    assert other.values.shape != again.values.shape or not torch.equal(other.values, again.values)


def test_options_reach_the_fit():
    book, figures = train(l1_budget=2.0, held_out=0.5, explicit_classes=2)
    assert book.sizes.cells == CLASSES
    assert book.sizes.explicit_classes == 2
    assert figures["certified_queries"] == 200


def test_training_options_outside_their_range_are_refused_before_any_work():
    for name, value in (
        ("decoy_l1", 0.0),
        ("decoy_steps", 0),
        ("surrogate_width", 0),
        ("surrogate_epochs", 1.5),
        ("min_members", 0),
        ("held_out", 1.0),
    ):
        with pytest.raises(InvalidOptionError, match=f"^{name} must be"):
            DecoyOptions(**{name: value})


def test_decoys_are_planted_as_declared_where_nothing_else_is_said():
    """One declaration decides: for the defense, the command and the function alike."""
    defaults = inspect.signature(plant_decoys).parameters
    options = DecoyOptions()
    assert (options.decoy_l1, options.decoy_steps) == (0.02, 100)
    assert defaults["l1_budget"].default == options.decoy_l1
    assert defaults["steps"].default == options.decoy_steps

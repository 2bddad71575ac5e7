"""What each attacker learns from, and what it answers: with a trainer that only takes notes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.attacks import AdversarialTraining, Averaging, LabelOnly, Retrained, Static
from oneway.attacks.averaging import ROWS as ROWS_AT_ONCE
from oneway.attacks.averaging import mean_answer
from oneway.attacks.kernel_ridge import REGRESSIONS, regress
from oneway.contracts import AttackerKnowledge
from oneway.errors import InvalidOptionError
from oneway.releases import release

CLASSES, ROWS, QUERIES = 4, 23, 9

label_only, static, retrained = LabelOnly(), Static(), Retrained()
adversarial_training, averaging = AdversarialTraining(), Averaging()


class Notes:
    """Trains nothing: it keeps what it got, and its decoder keeps what it is asked."""

    def __init__(self):
        self.got = []
        self.asked = []

    def __call__(self, *tensors):
        self.got.append(tensors)

        def decoder(confidences):
            self.asked.append(confidences)
            return torch.full((len(confidences), 1, 2, 3), 0.5)

        return decoder


def knowledge(seed=0, labels=None):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(ROWS, CLASSES, generator=generator).softmax(-1)
    released = torch.randn(ROWS, CLASSES, generator=generator)
    if labels is not None:
        released.scatter_(-1, torch.tensor(labels).unsqueeze(-1), 20.0)
    return AttackerKnowledge(
        images=torch.rand(ROWS, 1, 2, 3, generator=generator),
        clean=clean,
        released=released.softmax(-1),
        held_out=torch.arange(ROWS) % 5 == 0,
    )


def answer(reconstructor, released):
    """What a reconstructor makes of one answer to each query, or of several."""
    return reconstructor.reconstruct(released if released.ndim == 3 else released.unsqueeze(0))


def queries(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(QUERIES, CLASSES, generator=generator).softmax(-1)


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, CLASSES - 1), min_size=ROWS, max_size=ROWS),
)
def test_label_only_answers_with_the_mean_image_of_the_released_label(seed, labels):
    seen, asked = knowledge(seed, labels), queries(seed + 1)
    answers = answer(label_only(seen, Notes())["mean image"], asked)
    every, images = range(ROWS), seen.images.numpy().astype(np.float64)

    def mean(rows, label):
        alike = [row for row in rows if labels[row] == label]
        # A label that none of its images got tells nothing: the mean of all.
        return images[alike or rows].mean(0)

    for made, query in zip(answers.numpy(), asked.numpy(), strict=True):
        np.testing.assert_allclose(made, mean([*every], query.argmax()), atol=1e-6)
    # Its own images are answered without them, the held-out ones first.
    own = label_only(seen, Notes())["mean image"].out_of_fold.numpy()
    assert len(own) == ROWS
    for made, row in zip(own, seen.judging.tolist(), strict=True):
        others = [other for other in every if other != row]
        np.testing.assert_allclose(made, mean(others, labels[row]), atol=1e-5)


def test_a_label_that_no_image_got_is_answered_with_the_mean_of_all():
    seen = knowledge(labels=[0] * ROWS)
    query = torch.tensor([[0.1, 0.1, 0.7, 0.1]])
    made = answer(label_only(seen, Notes())["mean image"], query)
    torch.testing.assert_close(made, seen.images.mean(0, keepdim=True))


def test_label_only_sees_nothing_of_a_release_but_its_arg_max():
    seen, asked = dataclasses.replace(knowledge(), clean=None), queries()
    sharpened = AttackerKnowledge(
        seen.images, None, (seen.released * 1000).softmax(-1), seen.held_out
    )  # other numbers, the same arg max
    notes, other_notes = Notes(), Notes()
    answers, others = label_only(seen, notes), label_only(sharpened, other_notes)
    for name in ("mean image", "decoder"):
        made = answer(answers[name], asked)
        assert torch.equal(made, answer(others[name], (asked * 1000).softmax(-1)))
    assert torch.equal(notes.got[0][0], other_notes.got[0][0])
    assert torch.equal(notes.asked[0], other_notes.asked[0])


def test_label_only_trains_on_the_clean_labels_if_it_saw_them_so_that_one_decoder_serves_all():
    seen, notes = knowledge(), Notes()
    other = dataclasses.replace(seen, released=seen.released.flip(0))
    for shown in (seen, other):
        label_only(shown, notes)
    (vectors, _, _), (others, _, _) = notes.got
    assert torch.equal(vectors.argmax(-1), seen.clean.argmax(-1))
    assert torch.equal(vectors, others)
    assert not torch.equal(seen.clean.argmax(-1), seen.released.argmax(-1))


def test_label_only_trains_on_one_vector_per_label_that_is_a_probability():
    seen, notes, asked = dataclasses.replace(knowledge(), clean=None), Notes(), queries()
    answer(label_only(seen, notes)["decoder"], asked)
    each = torch.eye(CLASSES)  # the decoder is asked about every label once
    for shown, vectors in ((seen.released, notes.got[0][0]), (each, notes.asked[0])):
        assert torch.equal(vectors.argmax(-1), shown.argmax(-1))
        assert len(vectors.unique(dim=0)) == len(shown.argmax(-1).unique())
        torch.testing.assert_close(vectors.sum(-1), torch.ones(len(vectors)))
        assert (vectors > 0).all()  # a zero has no logarithm


def test_static_trains_on_clean_scores_and_answers_what_is_released():
    seen, notes, asked = knowledge(), Notes(), queries()
    answer(static(seen, notes)["decoder"], asked)
    [(confidences, _, _)] = notes.got
    assert torch.equal(confidences, seen.clean)
    assert torch.equal(notes.asked[0], asked)


def test_static_needs_clean_scores():
    seen = knowledge()
    blind = AttackerKnowledge(seen.images, None, seen.released, seen.held_out)
    with pytest.raises(InvalidOptionError, match=r"there are none\. Pass them, or leave"):
        static(blind, Notes())


@looped("made", [None, {}, {"nearest": lambda rows: rows}])
def test_an_attack_that_returns_no_reconstructor_is_refused(made, monkeypatch):
    monkeypatch.setattr(type(static), "run", lambda *_: made)
    with pytest.raises(InvalidOptionError, match="static attacker must return at least one"):
        static(knowledge(), Notes())


@looped("saw_clean", [True, False])
def test_retrained_trains_on_released_scores_whether_or_not_it_saw_clean_ones(saw_clean):
    seen, notes, asked = knowledge(), Notes(), queries()
    clean = seen.clean if saw_clean else None
    shown = AttackerKnowledge(seen.images, clean, seen.released, seen.held_out)
    answer(retrained(shown, notes)["decoder"], asked)
    [(confidences, _, _)] = notes.got
    assert torch.equal(confidences, seen.released)
    assert torch.equal(notes.asked[0], asked)


class Api:
    """Answers each query with noise of its own around the query's logits; counts its calls."""

    def __init__(self, seed=7):
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = []
        self.answers = []

    def __call__(self, images, count):
        logits = images.flatten(1)[:, :CLASSES]
        noise = torch.randn(count, *logits.shape, generator=self.generator)
        self.calls.append((images, count))
        self.answers.append((logits + noise).softmax(-1))
        return self.answers[-1]


def random_observations(repeats=(3, 5), rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    images, api = torch.rand(rows, 1, 2, 3, generator=generator), Api()
    return AttackerKnowledge(
        images, None, api(images, 1)[0], torch.arange(rows) % 5 == 0, Api(), True, repeats
    )


def test_averaging_trains_on_the_normalised_geometric_mean_of_each_count_of_answers():
    seen, notes = random_observations(), Notes()
    reconstructors = averaging(seen, notes)
    regressions = [f"R = 5, {name}, {kernel}" for name, kernel in REGRESSIONS]
    assert list(reconstructors) == ["R = 3", "R = 5", *regressions]
    assert [each.repeats for each in reconstructors.values()] == [3, 5] + [5] * len(regressions)
    assert [count for _, count in seen.query.calls] == [3, 5]
    for (confidences, _, _), answers in zip(notes.got, seen.query.answers, strict=True):
        product = answers.numpy().astype(np.float64).prod(0) ** (1 / len(answers))
        expected = product / product.sum(-1, keepdims=True)
        np.testing.assert_allclose(confidences.numpy(), expected, rtol=1e-5)


def test_averaging_asks_about_its_own_images_in_parts_and_in_order():
    seen, notes = random_observations(repeats=(2,), rows=ROWS_AT_ONCE + 3), Notes()
    averaging(seen, notes)
    parts = [images for images, _ in seen.query.calls]
    assert [len(part) for part in parts] == [ROWS_AT_ONCE, 3]
    assert torch.equal(torch.cat(parts), seen.images)
    [(confidences, _, _)] = notes.got
    expected = torch.cat([mean_answer(answers) for answers in seen.query.answers])
    assert torch.equal(confidences, expected)


def test_averaging_answers_with_the_decoder_of_its_count_shown_the_mean():
    levels = iter((0.2, 0.8))

    def train(*_):
        level = next(levels)
        return lambda confidences: level + confidences[:, :1]

    reconstructors = averaging(random_observations(), train)
    for level, count in ((0.2, 3), (0.8, 5)):
        answers = Api(count)(torch.rand(QUERIES, 1, 2, 3), count)
        expected = level + mean_answer(answers)[:, :1]
        assert torch.equal(answer(reconstructors[f"R = {count}"], answers), expected)


def test_averaging_reads_the_mean_of_the_most_answers_by_kernel_ridge_too():
    seen = random_observations(repeats=(5, 3), rows=60)
    reconstructors = averaging(seen, Notes())
    means = mean_answer(seen.query.answers[-1])  # its own rows, five answers each
    expected = regress(means, seen.images, seen.judging)
    asked = Api(7)(torch.rand(QUERIES, 1, 2, 3), 5)
    for name, regression in expected.items():
        made = answer(reconstructors[f"R = 5, {name}"], asked)
        torch.testing.assert_close(made, regression[0](mean_answer(asked)))


@looped(
    ("answers", "mean"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], [0.5, 0.5]),
        ([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5]),
        ([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], [1.0, 0.0, 0.0]),
    ],
    ids=["without zeros", "a zero in every class", "a zero in every answer"],
)
def test_a_mean_answer_is_a_probability_vector_even_where_answers_hold_zeros(answers, mean):
    made = mean_answer(torch.tensor(answers).unsqueeze(1))
    torch.testing.assert_close(made, torch.tensor([mean]))


def test_averaging_does_not_apply_where_answers_do_not_vary_or_cannot_be_had():
    seen = random_observations()
    notes = Notes()
    for shown in (
        dataclasses.replace(seen, random=False),
        dataclasses.replace(seen, query=None),
        knowledge(),
    ):
        assert averaging(shown, notes) == {}
    assert notes.got == []
    assert seen.query.calls == []


class Shift:
    """A copy of the defense: it lifts one class, and keeps what it is asked."""

    requires_input = True
    keeps_label = False
    deterministic = True

    def __init__(self, label):
        self.label = label
        self.asked = []

    def __call__(self, logits, images=None):
        self.asked.append((logits, images))
        changed = logits.clone()
        changed[:, self.label] += 50
        return changed


def with_copies(*labels):
    return dataclasses.replace(knowledge(), simulated_defenses=[Shift(label) for label in labels])


def test_adversarial_training_sends_each_image_through_one_copy_and_uses_all_copies():
    seen, notes = with_copies(0, 1, 2), Notes()
    adversarial_training(seen, notes)
    [(confidences, _, _)] = notes.got
    assert confidences.argmax(-1).tolist() == [row % 3 for row in range(ROWS)]
    for position, copy in enumerate(seen.simulated_defenses):
        [(logits, images)] = copy.asked
        assert torch.equal(images, seen.images[position::3])
        torch.testing.assert_close(logits.softmax(-1).float(), seen.clean[position::3])


def test_adversarial_training_trains_on_what_its_copies_would_release_and_on_nothing_else():
    seen, notes, asked = with_copies(3), Notes(), queries()
    answer(adversarial_training(seen, notes)["decoder"], asked)
    [(confidences, _, _)] = notes.got
    logits = seen.clean.double().log()
    torch.testing.assert_close(confidences, release(Shift(3)(logits)), rtol=1e-4, atol=1e-7)
    assert torch.equal(notes.asked[0], asked)
    # The defender's own release is another one, and changes nothing.
    others = Notes()
    adversarial_training(dataclasses.replace(seen, released=seen.released.flip(0)), others)
    assert torch.equal(others.got[0][0], confidences)


def test_adversarial_training_does_not_apply_without_copies():
    notes = Notes()
    assert adversarial_training(knowledge(), notes) == {}
    blind = dataclasses.replace(knowledge(), clean=None)
    assert adversarial_training(blind, notes) == {}
    assert notes.got == []


def test_adversarial_training_needs_clean_scores_for_its_copies():
    blind = dataclasses.replace(with_copies(0), clean=None)
    with pytest.raises(InvalidOptionError, match=r"there are none\. Pass them, or leave"):
        adversarial_training(blind, Notes())


@looped("attack", [label_only, static, retrained, adversarial_training, averaging])
def test_every_attack_trains_on_its_own_images_with_its_own_held_out_rows(attack):
    notes = Notes()
    seen = dataclasses.replace(with_copies(0), query=Api(), random=True, repeats=(2,))
    tensors = [value for value in vars(seen).values() if isinstance(value, torch.Tensor)]
    before = [value.clone() for value in tensors]
    attack(seen, notes)
    [(_, images, held_out)] = notes.got
    assert images is seen.images
    assert held_out is seen.held_out
    assert len(tensors) == 4
    assert all(map(torch.equal, before, tensors))


@looped("attack", [label_only, static, retrained, adversarial_training])
def test_an_attack_that_needs_one_answer_asks_for_one_and_never_again(attack):
    seen = dataclasses.replace(with_copies(0), query=Api(), random=True)
    assert {reconstructor.repeats for reconstructor in attack(seen, Notes()).values()} == {1}
    assert seen.query.calls == []

"""What each attacker learns from, and what it answers: with a trainer that only takes notes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneway.attacks import label_only, retrained, static
from oneway.contracts import Observations
from oneway.errors import InvalidOptionError

CLASSES, ROWS, QUERIES = 4, 23, 9


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


def observations(seed=0, labels=None):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(ROWS, CLASSES, generator=generator).softmax(-1)
    released = torch.randn(ROWS, CLASSES, generator=generator)
    if labels is not None:
        released.scatter_(-1, torch.tensor(labels).unsqueeze(-1), 20.0)
    return Observations(
        images=torch.rand(ROWS, 1, 2, 3, generator=generator),
        clean=clean,
        released=released.softmax(-1),
        held_out=torch.arange(ROWS) % 5 == 0,
    )


def queries(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(QUERIES, CLASSES, generator=generator).softmax(-1)


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, CLASSES - 1), min_size=ROWS, max_size=ROWS),
)
def test_label_only_answers_with_the_mean_image_of_the_released_label(seed, labels):
    seen, asked = observations(seed, labels), queries(seed + 1)
    answers = label_only(seen, Notes())["mean image"](asked)
    own = [row for row in range(ROWS) if not seen.held_out[row]]
    images = seen.images.numpy().astype(np.float64)
    for answer, query in zip(answers.numpy(), asked.numpy(), strict=True):
        rows = [row for row in own if labels[row] == query.argmax()]
        # A label that none of its images got tells nothing: the mean of all.
        expected = images[rows or own].mean(0)
        np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_a_label_that_no_image_got_is_answered_with_the_mean_of_all():
    seen = observations(labels=[0] * ROWS)
    query = torch.tensor([[0.1, 0.1, 0.7, 0.1]])
    answer = label_only(seen, Notes())["mean image"](query)
    torch.testing.assert_close(answer, seen.images[~seen.held_out].mean(0, keepdim=True))


def test_label_only_sees_nothing_of_a_release_but_its_arg_max():
    seen, asked = observations(), queries()
    sharpened = Observations(
        seen.images, None, (seen.released * 1000).softmax(-1), seen.held_out
    )  # other numbers, the same arg max
    notes, other_notes = Notes(), Notes()
    answers, others = label_only(seen, notes), label_only(sharpened, other_notes)
    for name in ("mean image", "decoder"):
        assert torch.equal(answers[name](asked), others[name]((asked * 1000).softmax(-1)))
    assert torch.equal(notes.got[0][0], other_notes.got[0][0])
    assert torch.equal(notes.asked[0], other_notes.asked[0])


def test_label_only_trains_on_one_vector_per_label_that_is_a_probability():
    seen, notes, asked = observations(), Notes(), queries()
    label_only(seen, notes)["decoder"](asked)
    for shown, vectors in ((seen.released, notes.got[0][0]), (asked, notes.asked[0])):
        assert torch.equal(vectors.argmax(-1), shown.argmax(-1))
        assert len(vectors.unique(dim=0)) == len(shown.argmax(-1).unique())
        torch.testing.assert_close(vectors.sum(-1), torch.ones(len(vectors)))
        assert (vectors > 0).all()  # a zero has no logarithm


def test_static_trains_on_clean_scores_and_answers_what_is_released():
    seen, notes, asked = observations(), Notes(), queries()
    static(seen, notes)["decoder"](asked)
    [(confidences, _, _)] = notes.got
    assert torch.equal(confidences, seen.clean)
    assert torch.equal(notes.asked[0], asked)


def test_static_needs_clean_scores():
    seen = observations()
    blind = Observations(seen.images, None, seen.released, seen.held_out)
    with pytest.raises(InvalidOptionError, match=r"there are none\. Pass them, or leave"):
        static(blind, Notes())


@pytest.mark.parametrize("saw_clean", [True, False])
def test_retrained_trains_on_released_scores_whether_or_not_it_saw_clean_ones(saw_clean):
    seen, notes, asked = observations(), Notes(), queries()
    clean = seen.clean if saw_clean else None
    shown = Observations(seen.images, clean, seen.released, seen.held_out)
    retrained(shown, notes)["decoder"](asked)
    [(confidences, _, _)] = notes.got
    assert torch.equal(confidences, seen.released)
    assert torch.equal(notes.asked[0], asked)


@pytest.mark.parametrize("attack", [label_only, static, retrained])
def test_every_attack_trains_on_its_own_images_with_its_own_held_out_rows(attack):
    seen, notes = observations(), Notes()
    before = [value.clone() for value in vars(seen).values()]
    attack(seen, notes)
    [(_, images, held_out)] = notes.got
    assert images is seen.images
    assert held_out is seen.held_out
    assert all(map(torch.equal, before, vars(seen).values()))

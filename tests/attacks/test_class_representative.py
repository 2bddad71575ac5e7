"""The search by optimisation: towards the class, with the paper's stop rule, at a bounded price."""

import dataclasses
from functools import partial

import torch

from laws import looped
from oneway.attacks.class_representative import (
    ENOUGH,
    ITERATIONS,
    PAIRS,
    PATIENCE,
    ClassRepresentative,
    WhiteBoxClassRepresentative,
    estimate_gradients,
    find_representatives,
    is_over,
)
from oneway.contracts import AttackerKnowledge

CLASSES, SHAPE = 3, (1, 12, 12)


def templates():
    """One smooth image per class, with entries at 0, at 1 and between."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = [torch.sin(rows / 2), torch.cos(columns / 3), torch.sin((rows + columns) / 4)]
    return (torch.stack(waves).unsqueeze(1) * 0.8 + 0.5).clamp(0, 1)


class Similar:
    """Its score for class k rises with the similarity to template k; the last class has the rest.

    Attributes:
        asked: What it was asked, one tensor per call.
    """

    def __init__(self, *, best=0.3, sharpness=6.0):
        self.best, self.sharpness = best, sharpness
        self.asked = []

    def __call__(self, images, count):
        self.asked.append((images, count))
        distance = (images.unsqueeze(1) - templates()).square().flatten(2).mean(-1)
        scores = self.best * torch.exp(-self.sharpness * distance)
        rest = 1 - scores.sum(-1, keepdim=True)
        return torch.cat([scores, rest], -1).expand(count, -1, -1)

    @property
    def queries(self):
        return sum(len(images) * count for images, count in self.asked)


def search(query, start=None, seed=0, classes=CLASSES):
    def costs(images, labels):
        confidences = query(images, 1)[0].gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return -confidences.clamp_min(1e-38).log()

    start = torch.zeros(SHAPE) if start is None else start
    generator = torch.Generator().manual_seed(seed)
    return find_representatives(
        costs, partial(estimate_gradients, costs, generator), start, classes
    )


def knowledge(query, released=None):
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(3))
    if released is None:
        released = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(6, 1)
    return AttackerKnowledge(images, None, released, torch.arange(6) < 2, query)


def distances(images):
    return (images - templates()).square().flatten(1).mean(-1)


@looped("seed", range(3))
@looped("level", [0.0, 1.0, 0.5])
def test_it_approaches_what_the_class_scores_highest(level, seed):
    start = torch.full(SHAPE, level)
    before = distances(start.expand(CLASSES, *SHAPE))
    found = search(Similar(), start, seed)
    # A gradient of the wrong sign moves away; one of noise alone stays about as far.
    assert (distances(found) < 0.25 * before).all()
    assert (distances(found) < 0.05).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_confidence_far_below_the_last_digit_of_1_is_climbed_all_the_same():
    """One in 1e12: ``1 - confidence`` is 1 whatever the image."""
    found = search(Similar(best=1e-12))
    assert (distances(found) < 0.05).all()
    torch.testing.assert_close(found, search(Similar()), atol=1e-3, rtol=0)


def test_the_white_box_form_follows_the_exact_gradient_and_asks_nothing():
    asked = []

    def logits(images):
        asked.append(len(images))
        distance = (images.unsqueeze(1) - templates()).square().flatten(2).sum(-1)
        return torch.cat([-distance, torch.full((len(images), 1), -30.0)], -1)

    seen = dataclasses.replace(knowledge(None), differentiable_logits=logits)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    made = WhiteBoxClassRepresentative()(seen, None)["representative"]
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(asked) <= (CLASSES + 1) * (1 + 2 * ITERATIONS)
    images = made.reconstruct(torch.eye(CLASSES + 1).unsqueeze(0))
    scores = logits(images).softmax(-1).diagonal()[:CLASSES]
    assert (scores > 0.99).all()
    assert (distances(images[:CLASSES]) < distances(torch.zeros(CLASSES, *SHAPE))).all()
    assert not images.requires_grad
    assert WhiteBoxClassRepresentative()(knowledge(Similar()), None) == {}


def test_neither_form_scores_a_release():
    assert not ClassRepresentative.reads_query
    assert not WhiteBoxClassRepresentative.reads_query


def test_it_answers_a_query_with_the_representative_of_its_label_seen_before_or_not():
    # All that was released for the attacker's images is label 0.
    reconstructors = ClassRepresentative()(knowledge(Similar()), None)
    assert list(reconstructors) == ["representative"]
    made = reconstructors["representative"]
    assert made.repeats == 1
    released = torch.tensor([[0.1, 0.2, 0.6, 0.1], [0.5, 0.1, 0.2, 0.2], [0.1, 0.7, 0.1, 0.1]])
    found = made.reconstruct(released.unsqueeze(0))
    assert found.shape == (3, *SHAPE)
    assert (distances(found[[1, 2, 0]]) < 0.05).all()
    torch.testing.assert_close(made.reconstruct(released.flip(0)[None]), found.flip(0))


def test_the_attack_starts_from_zeros_and_asks_for_images_of_its_own_making():
    query = Similar()
    seen = knowledge(query)
    ClassRepresentative()(seen, None)
    assert torch.equal(query.asked[0][0], torch.zeros(CLASSES + 1, *SHAPE))
    assert all(images.min() >= 0 and images.max() <= 1 for images, _ in query.asked)
    assert {count for _, count in query.asked} == {1}


def test_it_does_not_apply_where_the_api_cannot_be_asked():
    assert ClassRepresentative()(knowledge(None), None) == {}


def test_the_same_answers_give_the_same_images_whatever_the_global_stream():
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        reconstructor = ClassRepresentative()(knowledge(Similar()), None)["representative"]
        assert torch.equal(torch.get_rng_state(), state)
        made.append(reconstructor.reconstruct(torch.eye(4).unsqueeze(0)))
    assert torch.equal(*made)
    assert not torch.equal(search(Similar(), seed=0), search(Similar(), seed=1))


def test_queries_are_bounded_and_those_of_all_classes_come_together():
    query = Similar()
    search(query)
    per_class = 1 + ITERATIONS * (2 * PAIRS + 1)
    assert 10 * per_class == 29_410  # what the docstring says
    assert query.queries <= CLASSES * per_class
    # Two calls a step, and one for the start, however many classes there are.
    assert len(query.asked) <= 1 + 2 * ITERATIONS
    assert len(query.asked[1][0]) == 2 * PAIRS * CLASSES


def test_the_most_steps_are_taken_where_each_improves_and_none_is_enough():
    class Ever:
        """Answers each call with a little more than the one before."""

        calls = 0

        def __call__(self, images, count):
            self.calls += 1
            return torch.full((count, len(images), 2), self.calls * 1e-3)

    query = Ever()
    search(query, classes=2)
    assert query.calls == 1 + 2 * ITERATIONS


def test_a_flat_target_is_given_up_after_the_patience_and_answered_with_the_start():
    query = Similar(best=0.0)
    start = torch.full(SHAPE, 0.3)
    found = search(query, start)
    assert len(query.asked) == 1 + 2 * PATIENCE
    assert torch.equal(found, start.expand(CLASSES, *SHAPE))


def test_a_class_that_scores_enough_is_asked_no_more_while_the_others_go_on():
    class Sure(Similar):
        """Knows class 0 for certain, whatever it is shown."""

        def __call__(self, images, count):
            answers = super().__call__(images, count).clone()
            answers[..., 0] = 1 - ENOUGH / 2
            return answers

    query = Sure()
    found = search(query)
    sizes = [len(images) for images, _ in query.asked]
    # The start, a gradient and a step of all three; then of two.
    assert sizes[:5] == [3, 6 * PAIRS, 3, 4 * PAIRS, 2]
    assert (distances(found)[1:] < 0.05).all()


def test_what_is_returned_is_the_lowest_cost_and_not_the_last():
    class Fading(Similar):
        """Scores as its kind does for some calls; then everything scores less than before."""

        def __call__(self, images, count):
            answers = super().__call__(images, count).clone()
            if len(self.asked) > 1 + 2 * 15:
                answers *= 0.01
            return answers

    query = Fading()
    found = search(query)
    steps = [images for images, _ in query.asked if len(images) == CLASSES]
    assert len(steps) > 16  # the start, 15 good steps, and a bad one
    costs = [1 - Similar()(images, 1)[0].diagonal() for images in steps[:16]]
    best = torch.stack(costs).argmin(0)
    expected = torch.stack([steps[number][label] for label, number in enumerate(best.tolist())])
    assert torch.equal(found, expected)


def history(*costs):
    """Costs of one class, the latest last."""
    return torch.tensor(costs).unsqueeze(-1)


FALLING = torch.linspace(0.9, 0.5, PATIENCE)


@looped(
    ("latest", "over"),
    [
        (0.4, False),  # lower than all
        (0.89, False),  # a step back, yet below the highest of the window
        (0.9, True),  # as high as the highest: the paper's rule has no less-than
        (0.95, True),
    ],
)
def test_a_search_ends_where_the_cost_is_no_lower_than_the_highest_of_the_window(latest, over):
    assert is_over(history(*FALLING.tolist(), latest)).tolist() == [over]


def test_costs_before_the_window_do_not_count():
    window = [0.5] * PATIENCE
    assert is_over(history(0.9, *window, 0.6)).tolist() == [True]
    assert is_over(history(0.1, *window, 0.4)).tolist() == [False]


def test_there_is_no_telling_before_the_window_is_full():
    rising = torch.linspace(0.2, 0.8, PATIENCE).tolist()
    for count in range(1, PATIENCE + 1):
        assert is_over(history(*rising[:count])).tolist() == [False]
    assert is_over(history(*rising, 0.9)).tolist() == [True]


@looped(("latest", "over"), [(ENOUGH / 2, True), (ENOUGH, True), (2 * ENOUGH, False)])
@looped("earlier", [1, PATIENCE, 2 * PATIENCE])
def test_a_low_cost_ends_a_search_at_any_time(latest, over, earlier):
    assert is_over(history(*[0.9] * earlier, latest)).tolist() == [over]


def test_each_class_has_a_stop_of_its_own():
    costs = torch.stack([torch.full((PATIENCE + 1,), 0.5), torch.linspace(0.9, 0.4, PATIENCE + 1)])
    assert is_over(costs.T).tolist() == [True, False]


def test_images_smaller_than_the_grid_of_perturbations_are_searched_too():
    goal = torch.tensor([[[0.9, 0.2], [0.1, 0.7]], [[0.1, 0.8], [0.5, 0.3]]]).unsqueeze(1)

    def query(images, count):
        distance = (images.unsqueeze(1) - goal).square().flatten(2).mean(-1)
        return torch.exp(-6 * distance).mul(0.4).expand(count, -1, -1)

    found = search(query, torch.zeros(1, 2, 2), classes=2)
    assert ((found - goal).abs() < 0.2).all()


def test_colour_images_have_perturbations_of_each_channel():
    goal = torch.tensor([0.9, 0.1, 0.6]).view(3, 1, 1).expand(3, 8, 8)

    def query(images, count):
        score = torch.exp(-6 * (images - goal).square().flatten(1).mean(-1)) * 0.5
        return torch.stack([score, 1 - score], -1).expand(count, -1, -1)

    found = search(query, torch.zeros(3, 8, 8), classes=2)[0]
    assert (found.mean((1, 2)) - goal[:, 0, 0]).abs().max() < 0.15

"""Attackers with a generative prior: posterior means, draws, and searches for a class."""

import math

import pytest
import torch
from torch.nn import functional

from laws import looped
from oneway.attacks import GMI, Generative, LatentSearch, gmi, latent_search
from oneway.contracts import AttackerKnowledge
from oneway.defenses.codebook import CodebookRelease, FitSettings, certify, fit_codebook
from oneway.evaluation import run_attack
from oneway.releases import release

CLASSES, SHAPE = 3, (1, 4, 4)


class Templates:
    """A prior of M equally likely inputs: a latent is the number of one."""

    limit = 1e9

    def __init__(self, inputs):
        self.inputs = inputs

    def draw(self, count, generator):
        return torch.randint(len(self.inputs), (count, 1), generator=generator).float()

    def __call__(self, latents, confidences=None):  # noqa: ARG002
        return self.inputs[latents[:, 0].long()]

    def plausibility(self, latents):
        return torch.zeros(len(latents))


class Smooth:
    """A prior whose inputs are a smooth function of standard normal latents."""

    limit = 2.0

    def __init__(self, latents=6):
        generator = torch.Generator().manual_seed(1)
        self.weights = torch.randn(latents, math.prod(SHAPE), generator=generator) / 2

    def draw(self, count, generator):
        return torch.randn(count, len(self.weights), generator=generator)

    def __call__(self, latents, confidences=None):  # noqa: ARG002
        return (latents @ self.weights).sigmoid().view(-1, *SHAPE)

    def plausibility(self, latents):
        return -0.5 * latents.square().sum(-1)


def linear_logits(images):
    weights = torch.randn(math.prod(SHAPE), CLASSES, generator=torch.Generator().manual_seed(2))
    return 4 * (images.flatten(1) - 0.5) @ weights


def asking(answer, asked=None):
    """Return a query function of a release; ``asked`` collects the numbers of images."""

    def query(images, count):
        if asked is not None:
            asked.append(len(images) * count)
        return answer(linear_logits(images)).expand(count, -1, -1)

    return query


def knowledge(prior, images, answer, **fields):
    released = answer(linear_logits(images))
    return AttackerKnowledge(
        images,
        None,
        released,
        torch.arange(len(images)) % 4 == 0,
        query=asking(answer),
        train_prior=lambda *_: prior,
        **fields,
    )


def no_decoder(*_):
    raise AssertionError("these attacks train no decoder")


@pytest.fixture(scope="module")
def templates():
    return Templates(torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(3)))


@pytest.fixture
def fewer_draws(monkeypatch):
    monkeypatch.setattr(latent_search, "DRAWS", 4096)
    monkeypatch.setattr(latent_search, "TRANSFORMS", ("standardized",))
    monkeypatch.setattr(latent_search, "BANDWIDTHS", (0.0, 0.2))


# --- Latent search -------------------------------------------------------------------------------


@pytest.mark.usefixtures("fewer_draws")
def test_the_mean_of_matching_draws_is_the_posterior_mean(templates):
    """Where every input is known, the mean of those with the observed vector is the optimum."""
    answer = lambda logits: release(logits, decimals=1)  # noqa: E731
    found = LatentSearch()(knowledge(templates, templates.inputs, answer), no_decoder)
    made = found["mean, standardized, 0.0"].reconstruct
    released = answer(linear_logits(templates.inputs))
    same = (released.unsqueeze(1) == released.unsqueeze(0)).all(-1).float()
    assert 20 < len(released.unique(dim=0)) < 100
    expected = torch.einsum("nm,m...->n...", same / same.sum(-1, keepdim=True), templates.inputs)
    # A cell of m templates is hit about 14 m times.
    assert (made(released[None]) - expected).abs().max() < 0.3
    assert float((made(released[None]) - expected).square().mean()) < 2e-3


@pytest.mark.usefixtures("fewer_draws")
def test_it_comes_close_to_the_certificate_and_never_below_it(templates):
    generator = torch.Generator().manual_seed(4)
    fitting, queries = (templates(templates.draw(1200, generator)) for _ in range(2))
    book = fit_codebook(linear_logits(fitting), FitSettings(min_members=40))
    guard = CodebookRelease(book)
    answer = lambda logits: release(guard(logits))  # noqa: E731
    seen = knowledge(templates, fitting[:80], answer)
    shown = answer(linear_logits(queries))
    result = run_attack("latent-search", LatentSearch(), seen, no_decoder, shown, queries)
    certified = certify(book, linear_logits(queries), queries, held_out="yes").error
    best = result.reconstructor_errors["mean, standardized, 0.0"]
    assert certified.low < best < 1.05 * certified.estimate
    assert result.error > certified.low
    assert result.error > certified.lower_bound > 0


@pytest.mark.usefixtures("fewer_draws")
def test_a_draw_that_matches_errs_twice_as_much_as_the_mean(templates):
    answer = lambda logits: functional.one_hot(logits.argmax(-1), CLASSES).float()  # noqa: E731
    found = LatentSearch()(knowledge(templates, templates.inputs, answer), no_decoder)
    released = answer(linear_logits(templates.inputs))
    mean, sample = (
        (found[name].reconstruct(released[None]) - templates.inputs).square().mean()
        for name in ("mean, standardized, 0.0", "sample")
    )
    assert 1.9 < float(sample / mean) < 2.1
    drawn = found["sample"].reconstruct(released[None])
    assert torch.equal(answer(linear_logits(drawn)), released)


@looped("bandwidth", [0.0, 1e-3, 0.5, 100.0])
def test_weights_of_draws_are_those_of_a_slow_oracle(bandwidth):
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(20, CLASSES, generator=generator, dtype=torch.float64)
    features[7] = features[3]
    released = torch.cat([features[[3]], torch.randn(4, CLASSES, generator=generator).double()])
    made = latent_search.match_weights(lambda rows: rows, features, bandwidth, released)
    for row, weights in zip(released, made, strict=True):
        squares = [float((row - each).square().sum()) for each in features]
        least = min(squares)
        if bandwidth:
            raw = [math.exp(-(each - least) / (2 * bandwidth**2)) for each in squares]
        else:
            raw = [float(math.sqrt(each) <= math.sqrt(least) + 1e-9) for each in squares]
        expected = torch.tensor(raw, dtype=torch.float64) / sum(raw)
        torch.testing.assert_close(weights, expected)
    assert made[0, 3] == made[0, 7] > 0


# --- Generative inverter -------------------------------------------------------------------------


def test_a_generative_inverter_reads_the_release_and_draws(templates):
    class Conditional:
        """Draws around an input that the confidences decide."""

        def draw(self, count, generator):
            return torch.randn(count, 1, generator=generator)

        def __call__(self, latents, confidences):
            return (0.5 + 0.1 * latents + confidences[:, :1]).view(-1, 1, 1, 1).expand(-1, *SHAPE)

    asked = []
    seen = knowledge(None, templates.inputs, release)
    prior = lambda *given: asked.append(given) or Conditional()  # noqa: E731
    seen = AttackerKnowledge(seen.images, None, seen.released, seen.held_out, train_prior=prior)
    found = Generative()(seen, no_decoder)
    [(images, confidences, held_out)] = asked
    assert images is seen.images
    assert confidences is seen.released
    assert held_out is seen.held_out
    middle = 0.5 + seen.released[:, :1]
    apart = {
        name: (each.reconstruct(seen.released[None]).mean((1, 2, 3)) - middle[:, 0]).std()
        for name, each in found.items()
    }
    assert 0.08 < apart["sample"] < 0.12
    assert 0.01 < apart["mean of 32"] < 0.025


@looped("attack", [LatentSearch(), Generative(), GMI()])
def test_they_do_not_apply_without_a_prior(attack, templates):
    seen = knowledge(templates, templates.inputs[:8], release)
    without = AttackerKnowledge(seen.images, None, seen.released, seen.held_out, query=seen.query)
    assert attack(without, no_decoder) == {}


# --- GMI -----------------------------------------------------------------------------------------


def confidence(found, prior):
    """Return the clean confidence of the best image of each class in its class."""
    return linear_logits(prior(found.best)).softmax(-1).diagonal()


def test_every_search_ends_in_its_class():
    prior, asked = Smooth(), []
    query = asking(release, asked)
    start = torch.Generator().manual_seed(0)
    of_scores = gmi.search_by_scores(prior, query, CLASSES, start, budget=480)
    assert sum(asked) <= gmi.POOL + CLASSES * gmi.STARTS * 480
    asked.clear()
    of_labels = gmi.search_by_labels(prior, query, CLASSES, start, budget=480)
    assert sum(asked) <= gmi.POOL + CLASSES * gmi.STARTS * 480
    of_gradient = gmi.search_by_gradient(prior, linear_logits, CLASSES, start, steps=200, rate=0.02)
    for found in (of_scores, of_labels, of_gradient):
        assert found.latents.shape == (CLASSES, gmi.STARTS, 6)
        assert found.latents.abs().max() <= prior.limit
        assert linear_logits(prior(found.best)).argmax(-1).tolist() == list(range(CLASSES))
    assert (confidence(of_scores, prior) > 0.9).all()
    # Without a gradient the same objective is reached.
    objective = [
        100 * confidence(found, prior).log() + prior.plausibility(found.best)
        for found in (of_scores, of_gradient)
    ]
    assert (objective[0] > objective[1] - 0.5).all()


def test_a_search_by_labels_reads_labels_alone():
    ends = [
        gmi.search_by_labels(
            Smooth(), asking(answer), CLASSES, torch.Generator().manual_seed(0), budget=330
        )
        for answer in (release, lambda logits: (logits / 7).softmax(-1))
    ]
    assert torch.equal(ends[0].latents, ends[1].latents)
    assert torch.equal(ends[0].values, ends[1].values)


def test_a_search_by_labels_moves_away_from_other_classes():
    class Line(Smooth):
        """Inputs are their latents; the label is the sign of the first."""

        def __call__(self, latents, confidences=None):  # noqa: ARG002
            return latents

    def query(images, count):
        return functional.one_hot((images[:, 0] > 0).long(), 2).float().expand(count, -1, -1)

    found = gmi.search_by_labels(Line(), query, 2, torch.Generator().manual_seed(0), budget=990)
    assert found.best[0, 0] < -1.5
    assert found.best[1, 0] > 1.5
    assert (found.values.amax(-1) > 1).all()


def test_a_search_by_labels_ends_at_the_largest_sphere_and_says_where_there_is_none():
    never = lambda images, count: torch.tensor([0.9, 0.1, 0.0]).expand(  # noqa: E731
        count, len(images), -1
    )
    found = gmi.search_by_labels(
        Smooth(), never, CLASSES, torch.Generator().manual_seed(0), budget=330
    )
    steps = 330 // (gmi.SPHERE + 1)
    assert found.values[0].tolist() == pytest.approx(
        [gmi.RADIUS * gmi.GROWTH ** (steps - 1)] * gmi.STARTS
    )
    assert (found.values[1:] == 0).all()


def test_the_gradient_search_is_the_published_update():
    """By the loop of the authors' code: v' = m v - r g; z' = z - m v + (1 + m) v'; clamp."""
    prior = Smooth()
    found = gmi.search_by_gradient(
        prior, linear_logits, CLASSES, torch.Generator().manual_seed(3), steps=20, rate=0.01
    )
    starts = prior.draw(CLASSES * gmi.STARTS, torch.Generator().manual_seed(3)).clamp(-2, 2)
    for number, latents in enumerate(starts):
        label, velocity = number // gmi.STARTS, torch.zeros(6)
        for _ in range(20):
            latents = latents.detach().requires_grad_()
            logs = linear_logits(prior(latents[None])).log_softmax(-1)
            (-prior.plausibility(latents[None]).sum() - 100 * logs[0, label]).backward()
            before, velocity = velocity, 0.9 * velocity - 0.01 * latents.grad
            latents = (latents - 0.9 * before + 1.9 * velocity).clamp(-2, 2)
        end = found.latents[label, number % gmi.STARTS]
        torch.testing.assert_close(end, latents.detach(), atol=1e-3, rtol=1e-3)


def test_the_attack_answers_with_the_image_of_the_label(monkeypatch):
    monkeypatch.setattr(gmi, "BUDGET", 64)
    monkeypatch.setattr(gmi, "STEPS", 5)
    prior = Smooth()
    images = prior(prior.draw(40, torch.Generator().manual_seed(0)))
    seen = knowledge(prior, images, release, differentiable_logits=linear_logits)
    found = GMI()(seen, no_decoder)
    assert list(found) == ["scores", "labels", "gradient"]
    for each in found.values():
        made = each.reconstruct(seen.released[None])
        labels = seen.released.argmax(-1)
        assert all(len(made[labels == label].unique(dim=0)) == 1 for label in labels.unique())
    again = GMI()(seen, no_decoder)["scores"].reconstruct(seen.released[None])
    assert torch.equal(again, found["scores"].reconstruct(seen.released[None]))

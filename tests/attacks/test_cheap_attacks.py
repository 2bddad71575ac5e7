"""Attackers that train no decoder, against slow oracles and known answers."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import looped
from oneway import contracts
from oneway.attacks import (
    ATTACKS,
    BaggedPerceptrons,
    CellMeans,
    KernelRidge,
    LabelOnly,
    Stack,
    bagged_perceptrons,
    kernel_ridge,
)
from oneway.attacks.cell_means import PULLS
from oneway.contracts import AttackerKnowledge, Candidate
from oneway.evaluation import run_attack
from oneway.inversion.input_transforms import INPUT_TRANSFORMS

CLASSES = 4


@pytest.fixture
def whole_trainings(monkeypatch):
    """Train perceptrons as large and as long as attackers do."""
    monkeypatch.setattr(bagged_perceptrons, "EPOCHS", 160)
    monkeypatch.setattr(bagged_perceptrons, "UNITS", 384)


def untrained(*_):
    """Train no decoder: these attacks must need none."""
    raise AssertionError("this attack trains no decoder")


def cells(seed, rows=40, kinds=6):
    """Return knowledge of a release with few vectors, and which vector each row has."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(kinds, CLASSES, generator=generator).mul(3).softmax(-1)
    kind = torch.randint(kinds, (rows,), generator=generator)
    means = torch.rand(kinds, 1, 2, 3, generator=generator)
    images = (means[kind] + 0.2 * torch.randn(rows, 1, 2, 3, generator=generator)).clamp(0, 1)
    released, held_out = vectors[kind], torch.arange(rows) % 4 == 0
    return AttackerKnowledge(images, None, released, held_out), kind, vectors


def slow_cell_means(images, labels, kinds):
    """Return answers to a query of a label and cell, and to each row without it, one by one.

    The pull has the least left-out error.
    """

    def answer(rows, label, kind, pull):
        alike = [images[row] for row in rows if labels[row] == label]
        same = [images[row] for row in rows if kinds[row] == kind]
        fallback = np.mean(alike or images[rows], 0)
        return (
            (np.sum(same, 0) + pull * fallback) / (len(same) + pull) if same or pull else fallback
        )

    every = list(range(len(images)))

    def left_out(row, pull):
        others = [other for other in every if other != row]
        return answer(others, labels[row], kinds[row], pull)

    errors = [sum(np.square(left_out(r, pull) - images[r]).sum() for r in every) for pull in PULLS]
    best = PULLS[int(np.argmin(errors))]
    return (lambda label, kind: answer(every, label, kind, best)), lambda row: left_out(row, best)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_cell_means_are_those_of_a_slow_oracle(seed):
    knowledge, kind, vectors = cells(seed, rows=24)
    attack = CellMeans()(knowledge, untrained)["cell means"]
    made = attack.reconstruct(vectors.unsqueeze(0))
    images, labels = knowledge.images.double().numpy(), vectors.argmax(-1)[kind].tolist()
    answers, left_out = slow_cell_means(images, labels, kind.tolist())
    for asked in sorted(set(kind.tolist())):
        expected = answers(int(vectors[asked].argmax()), asked)
        np.testing.assert_allclose(made[asked].numpy(), expected, atol=1e-5)
    for own, row in zip(attack.out_of_fold, knowledge.judging.tolist(), strict=True):
        np.testing.assert_allclose(own.numpy(), left_out(row), atol=1e-5)


def test_a_vector_that_no_row_got_is_answered_with_the_mean_of_its_label():
    knowledge, _, _ = cells(1)
    labels = knowledge.released.argmax(-1)
    unseen = torch.full((1, CLASSES), 0.1)
    unseen[0, labels[0]] = 0.7
    made = CellMeans()(knowledge, untrained)["cell means"].reconstruct(unseen.unsqueeze(0))
    torch.testing.assert_close(made[0], knowledge.images[labels == labels[0]].mean(0))


def test_cell_means_approach_the_optimum_as_rows_increase():
    noise = []
    for rows in (200, 6000):
        knowledge, kind, vectors = cells(5, rows=rows)
        made = CellMeans()(knowledge, untrained)["cell means"].reconstruct(vectors.unsqueeze(0))
        optimum = torch.stack([knowledge.images[kind == each].mean(0) for each in range(6)])
        noise.append(float((made - optimum).square().mean()))
    assert noise[1] < noise[0] / 4
    assert noise[1] < 1e-4


def smooth(seed, rows=300):
    """Return scores, and images that are a smooth function of them and of noise."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, CLASSES, generator=generator)
    mixing = torch.randn(CLASSES, 6, generator=generator)
    released = logits.softmax(-1)
    hidden = (released.log() @ mixing / 4).sigmoid()
    images = (hidden + 0.05 * torch.randn(rows, 6, generator=generator)).clamp(0, 1)
    held_out = torch.arange(rows) % 5 == 0
    return AttackerKnowledge(images.view(-1, 1, 2, 3), None, released, held_out)


def slow_ridge(kernel, rows, labels, inputs):
    """Return Gram matrix, penalty and length of least left-out error, with one fit for each row."""
    norm = {"exponential": 2, "Laplacian": 1}[kernel]
    apart = np.linalg.norm(rows[:, None] - rows[None], ord=norm, axis=-1)
    same = kernel_ridge.LABEL * (labels[:, None] == labels[None])
    aims, unit = inputs - inputs.mean(0), np.median(apart[apart > 0])
    found = []
    for factor in kernel_ridge.LENGTHS:
        gram = np.exp(-apart / (factor * unit)) + same
        for penalty in kernel_ridge.PENALTIES:
            made = left_out(gram, penalty, aims, range(len(rows)))
            found.append((np.square(made - aims).mean(), gram, penalty, factor * unit))
    return min(found, key=lambda each: each[0])[1:]


def left_out(gram, penalty, aims, asked):
    """Return the prediction of each asked row, by a fit to all other rows."""
    made = []
    for row in asked:
        others = np.arange(len(gram)) != row
        within = gram[np.ix_(others, others)] + penalty * np.eye(len(gram) - 1)
        made.append(gram[row, others] @ np.linalg.solve(within, aims[others]))
    return np.array(made)


@looped("kernel", ["exponential", "Laplacian"])
def test_kernel_ridge_solves_the_normal_equations_of_the_least_left_out_error(kernel):
    knowledge = smooth(0, rows=30)
    attack = KernelRidge()(knowledge, untrained)[f"unscaled, {kernel}"]
    inner = attack.reconstruct.args[0].args[1]
    transform = INPUT_TRANSFORMS["unscaled"](CLASSES)
    transform.fit(knowledge.released)
    rows = transform(knowledge.released).double().numpy()
    labels, inputs = knowledge.released.argmax(-1).numpy(), knowledge.images.flatten(1).numpy()
    gram, penalty, length = slow_ridge(kernel, rows, labels, inputs.astype(np.float64))
    assert inner.length == pytest.approx(length)
    aims = inputs - inputs.mean(0)
    weights = np.empty_like(inner.weights.numpy())
    weights[kernel_ridge._some(len(rows), len(rows)).numpy()] = inner.weights.numpy()
    assert np.abs(gram @ weights + penalty * weights - aims).max() < 1e-4
    # Its own rows are answered by fits without them.
    asked = knowledge.judging.tolist()
    expected = (inputs.mean(0) + left_out(gram, penalty, aims, asked)).clip(0, 1)
    np.testing.assert_allclose(attack.out_of_fold.flatten(1).numpy(), expected, atol=1e-4)


def test_kernel_ridge_reads_most_of_what_the_label_leaves_open():
    knowledge, queries = smooth(0), smooth(0, rows=500)
    shown, truth = queries.released[300:], queries.images[300:]
    # The same seed draws the mixing matrix after other rows: take that of the larger set.
    knowledge = dataclasses.replace(
        queries,
        images=queries.images[:300],
        released=queries.released[:300],
        held_out=knowledge.held_out,
    )
    labels = knowledge.released.argmax(-1)
    means = torch.stack([knowledge.images[labels == k].mean(0) for k in range(CLASSES)])
    label = float((means[shown.argmax(-1)] - truth).square().mean())
    attack = KernelRidge()(knowledge, untrained)["within-label, exponential"]
    made = attack.reconstruct(shown.unsqueeze(0))
    assert float((made - truth).square().mean()) < 0.5 * label


def test_with_more_rows_than_landmarks_it_is_nearly_as_good(monkeypatch):
    queries = smooth(3, rows=600)
    knowledge = dataclasses.replace(
        queries,
        images=queries.images[:400],
        released=queries.released[:400],
        held_out=queries.held_out[:400],
    )
    shown, truth = queries.released[400:].unsqueeze(0), queries.images[400:]
    errors = []
    for landmarks in (10_000, 100, 400):
        monkeypatch.setattr(kernel_ridge, "LANDMARKS", landmarks)
        made = KernelRidge()(knowledge, untrained)["standardized, exponential"].reconstruct(shown)
        errors.append(float((made - truth).square().mean()))
    assert errors[1] < 1.2 * errors[0]
    # With as many landmarks as rows nothing is left out.
    assert errors[2] == pytest.approx(errors[0], rel=1e-3)


@looped("name", ["cell-means", "kernel-ridge", "bagged-perceptrons"])
def test_degenerate_releases_are_answered_with_finite_images(name):
    generator = torch.Generator().manual_seed(0)
    different = torch.rand(12, 1, 2, 3, generator=generator)
    held_out = torch.arange(12) % 4 == 0
    one_label = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(12, -1)
    certain = torch.eye(CLASSES)[torch.arange(12) % CLASSES]
    alike = torch.full((12, CLASSES), 0.25)
    for released, images in itertools.product(
        (one_label, certain, alike), (different, torch.zeros(12, 1, 2, 3))
    ):
        knowledge = AttackerKnowledge(images, None, released, held_out)
        for each in ATTACKS[name](knowledge, untrained).values():
            made = each.reconstruct(released[:5].unsqueeze(0))
            assert made.shape == (5, 1, 2, 3)
            for answers in (made, each.out_of_fold):
                assert bool(((answers >= 0) & (answers <= 1)).all())


@looped("name", ["cell-means", "kernel-ridge", "bagged-perceptrons"])
def test_records_are_reconstructed_like_images(name):
    knowledge = smooth(2, rows=60)
    flat = dataclasses.replace(knowledge, images=knowledge.images.flatten(1))
    shown = knowledge.released[:9].unsqueeze(0)
    ours = ATTACKS[name](flat, untrained)
    for label, each in ATTACKS[name](knowledge, untrained).items():
        made = ours[label].reconstruct(shown)
        torch.testing.assert_close(made, each.reconstruct(shown).flatten(1))


@looped("name", ["cell-means", "kernel-ridge"])
def test_categories_are_answered_with_frequencies(name):
    knowledge = smooth(7, rows=80)
    category = knowledge.released.argmax(-1).roll(1) % 3
    records = torch.nn.functional.one_hot(category, 3).float()
    flat = dataclasses.replace(knowledge, images=records)
    shown = knowledge.released.unsqueeze(0)
    for each in ATTACKS[name](flat, untrained).values():
        made = each.reconstruct(shown)
        assert bool(((made >= 0) & (made <= 1)).all())
        if name == "cell-means":  # each row has a vector of its own: its category, or the label's
            torch.testing.assert_close(made.sum(-1), torch.ones(len(made)))


def test_a_stack_is_graded_on_the_mixture_of_all_candidates():
    knowledge = smooth(4, rows=100)
    held = knowledge.images[knowledge.held_out]
    queries = smooth(4, rows=140)
    truth, released = queries.images[100:], queries.released[100:]
    generator = torch.Generator().manual_seed(0)

    def candidate(share):
        noise = [0.2 * torch.randn(each.shape, generator=generator) for each in (held, truth)]
        return Candidate(share * held + noise[0], share * truth + noise[1])

    candidates = [candidate(0.9), candidate(0.6)]
    seen = dataclasses.replace(knowledge, candidates=candidates)
    result = run_attack("stack", Stack(), seen, untrained, released, truth)
    alone = [float((each.queries - truth).square().mean()) for each in candidates]
    assert result.error < min(alone)
    assert result.own_reconstructions.shape == held.shape


def test_candidates_that_leave_out_every_row_are_weighed_on_all_rows():
    knowledge = smooth(4, rows=200)
    own = knowledge.images[knowledge.judging]
    held = int(knowledge.held_out.sum())
    noise = 0.3 * torch.randn(3, *own.shape, generator=torch.Generator().manual_seed(1))
    # On the held-out rows the first looks perfect by chance; on all rows both are alike.
    first, second = own + noise[0], own + noise[1]
    first[:held] = own[:held]
    crossed = [Candidate(each[:held], each[:held], each) for each in (first, second)]
    single = Candidate(own[:held] + noise[2, :held], own[:held])
    for candidates in (crossed, [single, *crossed]):
        seen = dataclasses.replace(knowledge, candidates=candidates)
        weights = Stack()(seen, untrained)["mixture"].reconstruct.args[0]
        together = torch.stack([first, second]).flatten(1).double()
        expected = np.linalg.lstsq(together.T.numpy(), own.flatten().numpy(), rcond=None)[0]
        ours = weights[-2:]
        np.testing.assert_allclose(ours / ours.sum(), expected / expected.sum(), atol=1e-3)
        assert bool((weights >= 0).all())


def test_the_rows_that_judge_are_all_rows_the_held_out_ones_first(monkeypatch):
    knowledge = smooth(4, rows=60)
    held = knowledge.held_out.nonzero().flatten()
    assert knowledge.judging[: len(held)].tolist() == held.tolist()
    assert sorted(knowledge.judging.tolist()) == [*range(60)]
    for most, expected in ((20, 20), (5, len(held))):
        monkeypatch.setattr(contracts, "JUDGING_ROWS", most)
        fewer = dataclasses.replace(knowledge).judging
        assert len(fewer) == len(fewer.unique()) == expected
        assert fewer[: len(held)].tolist() == held.tolist()


def test_without_other_attackers_there_is_nothing_to_stack():
    knowledge = smooth(4, rows=50)
    assert Stack()(knowledge, untrained) == {}


def test_label_only_mixes_its_decoder_with_the_means():
    knowledge = smooth(6, rows=80)
    labels = knowledge.released.argmax(-1)
    kept = ~knowledge.held_out
    means = torch.stack([knowledge.images[kept & (labels == k)].mean(0) for k in range(CLASSES)])
    noise = torch.randn(CLASSES, 1, 2, 3, generator=torch.Generator().manual_seed(0))

    def train(*_):
        return lambda confidences: (means - 0.3 * noise)[confidences.argmax(-1)]

    reconstructors = LabelOnly()(knowledge, train)
    held, truth = knowledge.released[~kept].unsqueeze(0), knowledge.images[~kept]
    made = {
        name: each.reconstruct(held) if each.out_of_fold is None else each.out_of_fold[: len(truth)]
        for name, each in reconstructors.items()
    }
    errors = {name: float((each - truth).square().mean()) for name, each in made.items()}
    assert errors["mixture"] <= min(errors["mean image"], errors["decoder"]) + 1e-6


@pytest.mark.usefixtures("whole_trainings")
def test_perceptrons_read_scores_and_tell_their_progress():
    queries, shares = smooth(8, rows=400), list[float]()
    knowledge = AttackerKnowledge(
        queries.images[:300],
        None,
        queries.released[:300],
        queries.held_out[:300],
        report=shares.append,
    )
    truth = queries.images[300:]
    attack = BaggedPerceptrons()(knowledge, untrained)["mean"]
    made = attack.reconstruct(queries.released[300:].unsqueeze(0))
    prior = float((truth - knowledge.images.mean(0)).square().mean())
    assert float((made - truth).square().mean()) < 0.4 * prior
    own = knowledge.images[knowledge.judging]
    assert float((attack.out_of_fold - own).square().mean()) < 0.5 * prior
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.05 < 0.9 < shares[-1] <= 1


def test_a_training_ends_where_it_only_learns_by_heart(monkeypatch):
    """Scores that tell nothing of the images: every further step is for nothing."""
    monkeypatch.setattr(bagged_perceptrons, "EPOCHS", 40)
    generator = torch.Generator().manual_seed(3)
    released = torch.randn(400, CLASSES, generator=generator).softmax(-1)
    images, shares = torch.rand(400, 1, 2, 3, generator=generator), list[float]()
    held_out = torch.arange(400) % 4 == 0
    seen = AttackerKnowledge(images, None, released, held_out, report=shares.append)
    made = BaggedPerceptrons()(seen, untrained)["mean"].out_of_fold
    error = float((made - images[seen.judging]).square().mean())
    assert error < 1.03 * float((images - images.mean(0)).square().mean())
    assert max(share * bagged_perceptrons.FOLDS % 1 for share in shares) < 0.7


class ByHeart(torch.nn.Module):
    """Answers exactly with what it was trained on, and with zeros otherwise."""

    def __init__(self, released, aims):
        super().__init__()
        self.register_buffer("released", released)
        self.register_buffer("aims", aims)

    def forward(self, confidences):
        known = (confidences[:, None] == self.released).all(-1)
        return known.to(self.aims) @ self.aims


def test_networks_that_did_not_see_a_row_answer_it(monkeypatch):
    def train(released, aims, outside, *_):
        network = ByHeart(released[~outside], aims[~outside])
        return [bagged_perceptrons._Checkpoint(network, 1.0)]

    def empty(classes, components):
        return ByHeart(torch.empty(40, classes), torch.empty(40, components))

    monkeypatch.setattr(bagged_perceptrons, "_train", train)
    monkeypatch.setattr(bagged_perceptrons, "Perceptron", empty)
    knowledge = smooth(8, rows=50)
    attack = BaggedPerceptrons()(knowledge, untrained)["mean"]
    mean = knowledge.images.mean(0)
    torch.testing.assert_close(attack.out_of_fold, mean.expand_as(attack.out_of_fold))
    # A query is answered by the mean of five networks, of which four saw this row.
    made = attack.reconstruct(knowledge.released.unsqueeze(0))
    torch.testing.assert_close(made, 0.2 * mean + 0.8 * knowledge.images, atol=1e-4, rtol=0)


def test_no_fold_depends_on_the_order_of_classes():
    # Audits and experiments may pass rows in turn, a class after another, or sorted by class.
    labels = torch.arange(500) % 10
    for order in (labels, labels.sort().values):
        folds = bagged_perceptrons._folds(len(order))
        shares = torch.stack([order[folds == fold].bincount(minlength=10) for fold in range(5)])
        assert bool((shares > 0).all())
        few = order[kernel_ridge._some(len(order), 100)]
        assert bool((few.bincount(minlength=10) > 0).all())


def test_perceptrons_stop_where_the_time_is_over():
    def over(_):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        BaggedPerceptrons()(dataclasses.replace(smooth(8, rows=40), report=over), untrained)


@given(st.integers(2, 30), st.integers(1, 9), st.integers(0, 10**6))
def test_perceptrons_lose_nothing_in_all_components(rows, size, seed):
    inputs = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed))
    basis = bagged_perceptrons._Basis.of(inputs)
    torch.testing.assert_close(basis.restore(basis.project(inputs)), inputs, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("whole_trainings")
def test_the_steps_of_perceptrons_are_bounded():
    for rows in (1, 50, 1600, 2000, 5000, 10_000, 123_456):
        batch, epochs = bagged_perceptrons._schedule(rows)
        assert epochs * (rows // batch) <= bagged_perceptrons.STEPS, rows
        assert epochs >= bagged_perceptrons.LEAST_EPOCHS, rows

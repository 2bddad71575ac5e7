"""Kernel ridge, cell means and the stack, against slow oracles and known answers."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import looped
from oneway.attacks import ATTACKS, CellMeans, KernelRidge, LabelOnly, Stack, kernel_ridge
from oneway.attacks.cell_means import PULLS
from oneway.contracts import AttackerKnowledge
from oneway.evaluation import run_attack
from oneway.evaluation.grading import Candidate
from oneway.inversion.input_transforms import INPUT_TRANSFORMS

CLASSES = 4


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


def slow_cell_means(images, labels, kinds, asked_label, asked_kind):
    """Return the answer to a query, row by row, with the pull of the least left-out error."""

    def answer(rows, label, kind, pull):
        alike = [images[row] for row in rows if labels[row] == label]
        same = [images[row] for row in rows if kinds[row] == kind]
        fallback = np.mean(alike, 0) if alike else None
        if not same and fallback is None:
            return np.zeros_like(images[0])
        if len(same) + pull == 0:
            return fallback
        fallback = np.zeros_like(images[0]) if fallback is None else fallback
        return (np.sum(same, 0) + pull * fallback) / (len(same) + pull)

    every = range(len(images))
    errors = [
        sum(
            np.square(
                answer([r for r in every if r != row], labels[row], kinds[row], pull) - images[row]
            ).sum()
            for row in every
        )
        for pull in PULLS
    ]
    return answer(every, asked_label, asked_kind, PULLS[int(np.argmin(errors))])


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_cell_means_are_those_of_a_slow_oracle(seed):
    knowledge, kind, vectors = cells(seed, rows=24)
    made = CellMeans()(knowledge, untrained)["cell means"].reconstruct(vectors.unsqueeze(0))
    own = (~knowledge.held_out).nonzero().flatten()
    images = knowledge.images[own].double().numpy()
    labels, kinds = vectors.argmax(-1)[kind[own]].tolist(), kind[own].tolist()
    for asked in sorted(set(kinds)):
        label = int(vectors[asked].argmax())
        expected = slow_cell_means(images, labels, kinds, label, asked)
        np.testing.assert_allclose(made[asked].numpy(), expected, atol=1e-5)


def test_a_vector_that_no_row_got_is_answered_with_the_mean_of_its_label():
    knowledge, _, _ = cells(1)
    own = ~knowledge.held_out
    labels = knowledge.released.argmax(-1)
    unseen = torch.full((1, CLASSES), 0.1)
    unseen[0, labels[own][0]] = 0.7
    made = CellMeans()(knowledge, untrained)["cell means"].reconstruct(unseen.unsqueeze(0))
    expected = knowledge.images[own][labels[own] == labels[own][0]].mean(0)
    torch.testing.assert_close(made[0], expected)


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


def test_kernel_ridge_solves_the_normal_equations_of_its_choice():
    knowledge = smooth(0, rows=80)
    kept, labels = ~knowledge.held_out, knowledge.released.argmax(-1)
    made = KernelRidge()(knowledge, untrained)["standardized, rough"]
    inner = made.reconstruct.args[0].args[1]
    transform = INPUT_TRANSFORMS["standardized"](CLASSES)
    transform.fit(knowledge.released[kept])
    rows = transform(knowledge.released)[kept].double().numpy()
    gram = np.exp(-np.linalg.norm(rows[:, None] - rows[None], axis=-1) / inner.length)
    means = torch.stack([knowledge.images[kept & (labels == k)].mean(0) for k in range(CLASSES)])
    aims = (knowledge.images - means[labels])[kept].flatten(1).double().numpy()
    weights = inner.weights.numpy()
    # (K + penalty I) W = Y for one of the penalties.
    left = [np.abs(gram @ weights + p * weights - aims).max() for p in kernel_ridge.PENALTIES]
    assert min(left) < 1e-6
    # Its length scale and its penalty have the least held-out error, by solving all of them.
    held = transform(knowledge.released)[~kept].double().numpy()
    truth = (knowledge.images - means[labels])[~kept].flatten(1).double().numpy()
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    unit = float(torch.pdist(torch.from_numpy(rows)).median())
    errors = {}
    for factor in kernel_ridge.LENGTHS:
        kernel = np.exp(-apart / (factor * unit))
        across = np.exp(-np.linalg.norm(held[:, None] - rows[None], axis=-1) / (factor * unit))
        for penalty in kernel_ridge.PENALTIES:
            guess = across @ np.linalg.solve(kernel + penalty * np.eye(len(rows)), aims)
            errors[factor, penalty] = np.square(guess - truth).mean()
    factor, penalty = min(errors, key=errors.get)
    assert inner.length == pytest.approx(factor * unit)
    assert penalty == kernel_ridge.PENALTIES[int(np.argmin(left))]


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
    attack = KernelRidge()(knowledge, untrained)["within-label, rough"]
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
    for landmarks in (10_000, 100, 320):
        monkeypatch.setattr(kernel_ridge, "LANDMARKS", landmarks)
        made = KernelRidge()(knowledge, untrained)["standardized, rough"].reconstruct(shown)
        errors.append(float((made - truth).square().mean()))
    assert errors[1] < 1.2 * errors[0]
    # With as many landmarks as rows nothing is left out.
    assert errors[2] == pytest.approx(errors[0], rel=1e-3)


@looped("name", ["cell-means", "kernel-ridge"])
def test_degenerate_releases_are_answered_with_finite_images(name):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 1, 2, 3, generator=generator)
    held_out = torch.arange(12) % 4 == 0
    one_label = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(12, -1)
    certain = torch.eye(CLASSES)[torch.arange(12) % CLASSES]
    for released in (one_label, certain, torch.full((12, CLASSES), 0.25)):
        knowledge = AttackerKnowledge(images, None, released, held_out)
        for each in ATTACKS[name](knowledge, untrained).values():
            made = each.reconstruct(released[:5].unsqueeze(0))
            assert made.shape == (5, 1, 2, 3)
            assert bool(((made >= 0) & (made <= 1)).all())


@looped("name", ["cell-means", "kernel-ridge"])
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
    seen = dataclasses.replace(knowledge, candidates=[each.held_out for each in candidates])
    result = run_attack("stack", Stack(), seen, untrained, released, truth, candidates)
    alone = [float((each.queries - truth).square().mean()) for each in candidates]
    assert result.error < min(alone)
    assert result.own_reconstructions.shape == held.shape


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
    errors = {
        name: float((each.reconstruct(held) - truth).square().mean())
        for name, each in reconstructors.items()
    }
    assert errors["mixture"] <= min(errors["mean image"], errors["decoder"]) + 1e-6

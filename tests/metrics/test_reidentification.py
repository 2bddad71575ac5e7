"""Re-identification: slow oracles, chance where nothing is told, and the stronger judge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import (
    FeatureRegression,
    PrincipalComponents,
    rank_share,
    reidentification,
    reidentification_ranks,
)
from optional import later

gaussian_filter = later("scipy.ndimage:gaussian_filter")
PCA = later("sklearn.decomposition:PCA")

SEEDS = st.integers(0, 10**6)


def flatten(images):
    """The plainest embedder."""
    return images.flatten(1).double()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(seed, count, side=12):
    """Smooth images that all differ."""
    noise = np.random.default_rng(seed).normal(0, 1, (count, 1, side, side))
    smooth = gaussian_filter(noise, (0, 0, 1.5, 1.5))
    return torch.from_numpy(np.clip(0.5 + smooth, 0, 1)).float()


def blurry(images, seed, noise=0.05):
    """What a weak decoder makes of them: too smooth, too dark, a little random."""
    made = 0.6 * gaussian_filter(images.numpy(), (0, 0, 2.5, 2.5))
    return torch.from_numpy(made + np.random.default_rng(seed).normal(0, noise, made.shape)).float()


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 12), st.integers(1, 4), st.data())
def test_ranks_by_cosine_equal_a_slow_oracle(seed, count, features, data):
    gallery = data.draw(st.integers(2, count))
    random = np.random.default_rng(seed)
    true, made = random.random((2, count, features))
    ranks = reidentification_ranks(
        flatten, *map(torch.from_numpy, (true, made)), generator=generator(seed), gallery=gallery
    )
    order = torch.randperm(count, generator=generator(seed)).tolist()
    true, made = true - true.mean(0), made - made.mean(0)
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    for place, query in enumerate(order):
        start = min(place // gallery * gallery, count - gallery)
        scores = [float(true[other] @ made[query]) for other in order[start : start + gallery]]
        own = scores[place - start]
        better = sum(score > own + 1e-9 for score in scores)
        unsure = sum(abs(score - own) <= 1e-9 for score in scores)
        assert better < ranks[query] <= better + unsure
    assert ranks.dtype == torch.int64


@settings(max_examples=25)
@given(SEEDS, st.integers(3, 10))
def test_calibrated_ranks_are_those_of_the_gaussian_likelihood_ratio(seed, count):
    random = np.random.default_rng(seed)
    held_true = random.normal(0, 1, (40, 3)) * [2, 1, 0.5]
    held_made = held_true * [0.5, -1, 0] + random.normal(3, 0.5, (40, 3))
    true = random.normal(0, 1, (count, 3)) * [2, 1, 0.5]
    made = true * [0.5, -1, 0] + random.normal(3, 0.5, (count, 3))
    pairs = [torch.from_numpy(each) for each in (held_true, held_made)]
    ranks = reidentification_ranks(
        flatten,
        *map(torch.from_numpy, (true, made)),
        generator=generator(),
        gallery=count,
        regression=FeatureRegression.fit(flatten, *pairs),
    )
    scores = np.zeros((count, count))
    for feature in range(3):
        slope, offset = np.polyfit(held_made[:, feature], held_true[:, feature], 1)
        expected = slope * made[:, feature] + offset
        residual = np.mean((held_true[:, feature] - slope * held_made[:, feature] - offset) ** 2)
        prior, center = held_true[:, feature].var(), held_true[:, feature].mean()
        x = true[:, feature]
        scores += -((expected[:, None] - x) ** 2) / residual + (x - center) ** 2 / prior
    own = np.diag(scores)[:, None]
    assert ranks.tolist() == (1 + (scores > own + 1e-9).sum(1)).tolist()


def judges():
    embedder = PrincipalComponents.fit(blobs(1, 150), 20)
    held_out = blobs(2, 100)
    return embedder, held_out


@looped("value", [0.0, 0.5, "mean"])
@looped("calibrated", [False, True])
def test_a_constant_reconstruction_scores_exactly_at_chance(value, calibrated):
    embedder, held_out = judges()
    images = blobs(3, 60)
    constant = blobs(1, 150).mean(0) if value == "mean" else torch.full((1, 12, 12), value)
    regression = (
        FeatureRegression.fit(embedder, held_out, constant.expand_as(held_out))
        if calibrated
        else None
    )
    ranks = reidentification_ranks(
        embedder,
        images,
        constant.expand_as(images),
        generator=generator(),
        gallery=20,
        regression=regression,
    )
    # In each gallery, every rank occurs once.
    assert sorted(ranks.tolist()) == sorted(list(range(1, 21)) * 3)
    assert rank_share(ranks) == pytest.approx(1 / 20)


@looped("calibrated", [False, True])
def test_unrelated_reconstructions_score_near_chance(calibrated):
    embedder, held_out = judges()
    images, unrelated = blobs(4, 600), blobs(5, 600)
    regression = FeatureRegression.fit(embedder, held_out, blobs(6, 100)) if calibrated else None
    ranks = reidentification_ranks(
        embedder, images, unrelated, generator=generator(), gallery=50, regression=regression
    )
    # Five standard errors of 600 trials.
    assert rank_share(ranks, 10) == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 600) ** 0.5)


def test_exact_reconstructions_rank_first():
    embedder, held_out = judges()
    images = blobs(7, 100)
    for regression in (None, FeatureRegression.fit(embedder, held_out, held_out)):
        ranks = reidentification_ranks(
            embedder,
            images,
            images,
            generator=generator(),
            gallery=100,
            regression=regression,
        )
        assert (ranks == 1).all()


def test_blurry_and_dark_reconstructions_are_recognized_more_so_by_a_calibrated_judge():
    embedder, held_out = judges()
    images = blobs(8, 400)
    regression = FeatureRegression.fit(embedder, held_out, blurry(held_out, 9, 0.2))
    shares = [
        rank_share(
            reidentification_ranks(
                embedder,
                images,
                blurry(images, 10, 0.2),
                generator=generator(),
                gallery=400,
                regression=each,
            )
        )
        for each in (None, regression)
    ]
    assert shares[0] > 20 / 400
    assert shares[1] > 1.5 * shares[0]


def test_inputs_that_occur_twice_share_their_ranks():
    images = blobs(11, 20).repeat(2, 1, 1, 1)
    ranks = reidentification_ranks(flatten, images, images, generator=generator(), gallery=40)
    assert sorted(ranks.tolist()) == [1] * 20 + [2] * 20


@given(st.integers(2, 40), st.data())
def test_every_query_is_ranked_once_in_a_whole_gallery_that_holds_it(count, data):
    gallery = data.draw(st.integers(2, count))
    ranked = []
    for members, first in reidentification.deal_galleries(count, gallery, generator()):
        assert len(set(members.tolist())) == gallery
        ranked += members[first:].tolist()
    assert sorted(ranked) == list(range(count))


def test_the_memory_bound_changes_nothing(monkeypatch):
    embedder, _ = judges()
    images, made = blobs(12, 50), blurry(blobs(12, 50), 13)
    whole = reidentification_ranks(embedder, images, made, generator=generator(), gallery=30)
    monkeypatch.setattr(reidentification, "ROWS_AT_ONCE", 7)
    parts = reidentification_ranks(embedder, images, made, generator=generator(), gallery=30)
    assert torch.equal(whole, parts)


@settings(max_examples=30)
@given(SEEDS, st.integers(4, 30), st.integers(2, 40), st.integers(1, 6))
def test_components_are_those_of_scikit_learn_up_to_sign(seed, rows, features, components):
    images = torch.from_numpy(np.random.default_rng(seed).random((rows, features)))
    embedder = PrincipalComponents.fit(images, components)
    rank = min(rows - 1, features, components)
    expected = PCA(rank, svd_solver="full").fit(images.numpy())
    assert embedder.directions.shape == (features, rank)
    alike = np.abs((embedder.directions.numpy().T * expected.components_).sum(1))
    spectrum = np.append(expected.explained_variance_, 0)
    apart = np.abs(np.diff(spectrum)) > 1e-3 * spectrum[0]
    apart[1:] &= apart[:-1]
    apart[-1] &= rank < components  # the next one, unseen here, may be as large
    np.testing.assert_allclose(alike[apart], 1, atol=1e-6)
    torch.testing.assert_close(embedder(images).mean(0), torch.zeros(rank).double())
    gram = embedder.directions.mT @ embedder.directions
    torch.testing.assert_close(gram, torch.eye(rank).double())


def test_components_take_images_and_records_alike_and_are_deterministic():
    images = blobs(14, 30)
    first, again = PrincipalComponents.fit(images, 8), PrincipalComponents.fit(images, 8)
    flat = PrincipalComponents.fit(images.flatten(1), 8)
    for other in (again, flat):
        assert torch.equal(first.directions, other.directions)
        assert torch.equal(first.mean, other.mean)
    assert torch.equal(first(images), flat(images.flatten(1)))


@looped(("rows", "values"), [(10, 0), (2, 10 * 144)])
def test_of_many_images_some_at_even_distances_are_taken(monkeypatch, rows, values):
    monkeypatch.setattr(reidentification, "FIT_ROWS", rows)
    monkeypatch.setattr(reidentification, "FIT_VALUES", values)
    images = blobs(15, 35)
    chosen = [place * 35 // 10 for place in range(10)]
    few, many = PrincipalComponents.fit(images[chosen], 5), PrincipalComponents.fit(images, 5)
    assert torch.equal(few.directions, many.directions)


def test_a_feature_that_never_varies_decides_nothing():
    images, noise = torch.rand(2, 30, 4, generator=generator(), dtype=torch.float64)
    made, constant = images + noise, torch.full((30, 1), 0.5, dtype=torch.float64)
    ranks = [
        reidentification_ranks(
            flatten,
            true,
            guess,
            generator=generator(),
            gallery=30,
            regression=FeatureRegression.fit(flatten, true, guess),
        )
        for true, guess in (
            (images, made),
            (torch.cat([images, constant], -1), torch.cat([made, constant], -1)),
        )
    ]
    assert torch.equal(*ranks)
    assert ranks[0].max() > 1


def test_rank_share_counts_to_within():
    ranks = torch.tensor([1, 5, 6, 1000])
    assert [rank_share(ranks, within) for within in (1, 5, 6, 1000)] == [0.25, 0.5, 0.75, 1]


@looped(
    "ranks", [torch.tensor([0, 1]), torch.tensor([1.0]), torch.zeros(0).long(), torch.tensor(1)]
)
def test_what_is_no_rank_is_refused(ranks):
    with pytest.raises(InvalidTensorError, match="ranks must be int64"):
        rank_share(ranks)


@looped(("gallery", "message"), [(1, "at least 2"), (31, "at most the 30 queries")])
def test_a_gallery_that_cannot_be_filled_is_refused(gallery, message):
    images = blobs(16, 30)
    with pytest.raises(InvalidOptionError, match=message):
        reidentification_ranks(flatten, images, images, generator=generator(), gallery=gallery)


def test_what_cannot_be_embedded_is_refused_with_the_remedy():
    with pytest.raises(InvalidTensorError, match="all 5 are alike"):
        PrincipalComponents.fit(torch.ones(5, 1, 4, 4))
    embedder = PrincipalComponents.fit(blobs(17, 9), 3)
    with pytest.raises(InvalidTensorError, match=r"144 values each.*but got 16"):
        embedder(torch.zeros(2, 1, 4, 4))
    with pytest.raises(InvalidTensorError, match="at least 2 pairs"):
        FeatureRegression.fit(embedder, blobs(18, 1), blobs(19, 1))
    with pytest.raises(InvalidOptionError, match="components"):
        PrincipalComponents.fit(blobs(17, 9), 0)
    with pytest.raises(InvalidTensorError, match=r"shape \(4, 1, 12, 12\), but got \(3"):
        reidentification_ranks(flatten, blobs(0, 4), blobs(0, 3), generator=generator(), gallery=2)


@looped(
    ("broken", "message"),
    [
        (lambda images: images.flatten(1).float(), r"float64 of shape \(9, D\).*returned float32"),
        (lambda images: flatten(images)[1:], r"float64 of shape \(9, D\).*shape \(8, 144\)"),
        (lambda images: flatten(images)[:, 0], r"float64 of shape \(9, D\).*shape \(9,\)"),
        (lambda images: flatten(images) / 0, "NaN or infinity for 9 of 9"),
    ],
)
def test_an_embedder_that_breaks_its_promise_is_refused(broken, message):
    """NaN compares with nothing, so that every query would be found at rank 1."""
    images = blobs(20, 9)
    with pytest.raises(InvalidTensorError, match=message):
        FeatureRegression.fit(broken, images, images)
    with pytest.raises(InvalidTensorError, match=message):
        reidentification_ranks(broken, images, images, generator=generator(), gallery=9)


def test_the_regression_of_another_embedder_is_refused():
    images = blobs(20, 9)
    few, more = PrincipalComponents.fit(images, 3), PrincipalComponents.fit(images, 4)
    with pytest.raises(InvalidTensorError, match=r"4 features, but has 3.*same embedder"):
        reidentification_ranks(
            more,
            images,
            images,
            generator=generator(),
            gallery=9,
            regression=FeatureRegression.fit(few, images, images),
        )

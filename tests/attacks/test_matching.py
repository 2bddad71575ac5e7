"""Matching identifies what a release lets it: all of a one-to-one release, a share of a cell."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import looped
from oneway.attacks import ATTACKS, Matching, Workload, identification_attacks, inversion_attacks
from oneway.contracts import AttackerKnowledge
from oneway.data import Column
from oneway.evaluation import GalleryMatching, MatchedScores, matching
from oneway.evaluation.matching import (
    COPY_NOISE,
    NOISY_COPIES,
    TRUE_INPUTS,
    matching_queries,
    noisy_copies,
)
from oneway.evaluation.randomness import Stream
from oneway.metrics import deal_galleries

CLASSES, VALUES, AUXILIARY = 4, 6, 40
SEEDS = st.integers(0, 10**6)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def inputs(count, seed):
    """Images of one row of pixels, all distinct."""
    return torch.rand(count, 1, 1, VALUES, generator=generator(seed))


def clean_scores(images):
    weights = 4 * torch.randn(VALUES, CLASSES, generator=generator(5))
    # Row by row: an answer does not depend on its batch, to the last digit.
    return (images.flatten(1).unsqueeze(-1) * weights).sum(1).softmax(-1)


def labels_alone(images):
    one_hot = torch.nn.functional.one_hot(clean_scores(images).argmax(-1), CLASSES)
    return 0.01 / CLASSES + 0.99 * one_hot


def codebook(members):
    """Answer with the nearest of a few vectors of the label, as many-to-one releases do."""
    book = torch.randn(members, CLASSES, generator=generator(members)).softmax(-1)

    def answer(images):
        scores = clean_scores(images)
        return book[torch.cdist(scores, book, p=1).argmin(-1)]

    return answer


ONE_TO_ONE = {
    "clean": clean_scores,
    "permutation": lambda images: clean_scores(images).flip(-1),
    "temperature": lambda images: (0.2 * clean_scores(images).log()).softmax(-1),
    "low digits": lambda images: 0.25 + 1e-5 * (clean_scores(images).double() - 0.25),
}


def scores_of(answer, queries, seed=0, query=None, **more):
    auxiliary = inputs(AUXILIARY, seed + 1)
    knowledge = AttackerKnowledge(
        auxiliary,
        None,
        answer(auxiliary),
        torch.arange(AUXILIARY) < 12,
        query=query or (lambda images, count: torch.stack([answer(images)] * count)),
        **more,
    )
    return MatchedScores(knowledge, answer(queries))


def matched(answer, queries, seed=0, **more):
    clean = scores_of(clean_scores, queries, seed)
    return GalleryMatching(queries, clean, seed).results(scores_of(answer, queries, seed, **more))


def test_it_is_no_inversion_attack():
    assert identification_attacks() == {"matching": ATTACKS["matching"]}
    assert "matching" not in inversion_attacks()
    assert ATTACKS["matching"].threat == "identification"


@looped("name", ONE_TO_ONE)
@given(seed=SEEDS, count=st.integers(2, 30))
@settings(max_examples=5)
def test_one_answer_per_query_identifies_every_query(name, seed, count):
    result = matched(ONE_TO_ONE[name], inputs(count, seed), seed)[TRUE_INPUTS]
    assert (result.rank_1, result.rank_5, result.clean_rank_1) == (1, 1, 1)
    assert (result.gallery, result.chance, result.repeats) == (count, 1 / count, 1)


@given(SEEDS, st.integers(2, 30))
@settings(max_examples=10)
def test_labels_identify_as_many_queries_as_there_are_labels(seed, count):
    queries = inputs(count, seed)
    present = len(set(clean_scores(queries).argmax(-1).tolist()))
    result = matched(labels_alone, queries, seed)[TRUE_INPUTS]
    assert result.rank_1 == pytest.approx(present / count)
    assert (result.label_rank_1, result.label_rank_5) == pytest.approx(
        (result.rank_1, result.rank_5)
    )


@given(SEEDS, st.integers(2, 30), st.integers(1, 12), st.integers(2, 30))
@settings(max_examples=20)
def test_a_codebook_gives_away_its_cells_and_no_more(seed, count, members, size):
    queries, answer = inputs(count, seed), codebook(members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "GALLERY", size)
        result = matched(answer, queries, seed)[TRUE_INPUTS]
    vectors = [tuple(row) for row in answer(queries).tolist()]
    if count <= size:
        assert result.rank_1 == pytest.approx(len(set(vectors)) / count)
    # By another way, in each gallery: how many others have the same answer.
    hits = {1: 0.0, 5: 0.0}
    dealt = deal_galleries(count, min(size, count), Stream(seed, "gallery").generator())
    for members_of, first in dealt:
        cell = Counter(vectors[member] for member in members_of.tolist())
        for member in members_of.tolist()[first:]:
            for within in hits:
                hits[within] += min(1, within / cell[vectors[member]]) / count
    # An answer of another cell is never nearer than one of the query's own.
    assert result.rank_1 == pytest.approx(hits[1])
    assert result.rank_5 == pytest.approx(hits[5])


@given(SEEDS, st.integers(2, 20), st.sampled_from([clean_scores, labels_alone, codebook(5)]))
@settings(max_examples=10)
def test_the_order_of_a_gallery_changes_nothing(seed, count, answer):
    queries = inputs(count, seed)
    order = torch.randperm(count, generator=generator(seed))
    first, second = (matched(answer, rows, seed)[TRUE_INPUTS] for rows in (queries, queries[order]))
    assert (first.rank_1, first.rank_5) == pytest.approx((second.rank_1, second.rank_5))
    attack = ATTACKS["matching"]
    scores = scores_of(answer, queries, seed)
    matcher = attack(scores.knowledge, torch.clone)
    distances = matcher.distances(scores.released, matcher.ask(queries))
    moved = matcher.distances(scores.released, matcher.ask(queries[order]))
    assert torch.equal(moved, distances[:, order])


def noisy(seed):
    """Answers with noise of one nat on each logit, other noise each time."""
    source = generator(seed)

    def query(images, count):
        logits = clean_scores(images).log()
        return (logits + torch.randn(count, *logits.shape, generator=source)).softmax(-1)

    return query


def test_more_answers_to_each_candidate_identify_more_queries():
    queries, shares = inputs(200, 7), []
    for repeats in (1, 4, 64):
        answer = lambda images: noisy(3)(images, 1)[0]  # noqa: E731
        result = matched(answer, queries, query=noisy(4), random=True, repeats=(1, repeats))
        assert result[TRUE_INPUTS].repeats == repeats
        shares.append(result[TRUE_INPUTS].rank_5)
    assert shares[0] > 0.025
    assert shares[0] < shares[1] < shares[2] < 1


def test_noisy_copies_identify_less_than_true_inputs_and_more_than_the_label():
    result = matched(clean_scores, inputs(200, 8))
    assert set(result) == {TRUE_INPUTS, NOISY_COPIES}
    noisy_result = result[NOISY_COPIES]
    assert noisy_result.label_rank_1 < noisy_result.rank_1 < result[TRUE_INPUTS].rank_1 == 1
    assert noisy_result.rank_1 == noisy_result.clean_rank_1
    assert noisy_result.label_rank_1 <= result[TRUE_INPUTS].label_rank_1


def test_the_distance_is_chosen_on_rows_of_the_attacker_alone():
    queries = inputs(30, 9)
    scores = scores_of(clean_scores, queries)
    asked = []

    def query(images, count):
        asked.append(images)
        return clean_scores(images).unsqueeze(0).expand(count, -1, -1)

    seen = scores_of(clean_scores, queries, query=query).knowledge
    matcher = Matching()(seen, lambda images: 0.5 * images)
    assert torch.equal(torch.cat(asked), 0.5 * seen.images)
    assert matcher.distances(scores.released, matcher.ask(queries)).argmin(-1).tolist() == list(
        range(30)
    )


def test_the_planned_answers_are_those_that_are_asked_for():
    queries, counts = inputs(30, 10), []

    def query(images, count):
        counts.append(len(images) * count)
        return clean_scores(images).unsqueeze(0).expand(count, -1, -1)

    scores = scores_of(clean_scores, queries, query=query)
    GalleryMatching(queries, scores, 0).results(scores)
    assert sum(counts) == matching_queries(Workload(AUXILIARY, len(queries), (1,)))
    workload = Workload(10, 20, (3, 7))
    assert ATTACKS["matching"].extra_queries(workload) == 7 * 30


def test_recorded_scores_cannot_be_matched():
    queries = inputs(20, 11)
    scores = scores_of(clean_scores, queries)
    recorded = AttackerKnowledge(
        scores.knowledge.images, None, scores.knowledge.released, scores.knowledge.held_out
    )
    without = MatchedScores(recorded, scores.released)
    assert GalleryMatching(queries, without, 0).results(without) == {}


COLUMNS = (
    Column("age", "numeric", 0, 1),
    Column("sex", "categorical", 1, 3, categories=("f", "m")),
    Column("income", "numeric", 3, 5),
)


def test_noise_moves_the_numbers_of_a_record_and_no_category_or_missing_value():
    rows = torch.tensor([[0.5, 0.0, 1.0, 0.5, 0.0], [0.5, 1.0, 0.0, 0.5, 1.0]]).repeat(500, 1)
    before = rows.clone()
    copies = noisy_copies(rows, COLUMNS, generator(0))
    assert torch.equal(rows, before)
    moved = copies - rows
    assert (moved[:, 1:3] == 0).all()
    assert (moved[:, 4] == 0).all()
    assert (moved[1::2, 3] == 0).all()
    for values in (moved[:, 0], moved[::2, 3]):
        assert float(values.std()) == pytest.approx(COPY_NOISE, rel=0.2)


@looped("columns", [(), COLUMNS[:1]])
def test_noisy_copies_stay_in_range(columns):
    for value in (0.0, 1.0):
        copies = noisy_copies(torch.full((100, 1), value), columns, generator(1))
        assert copies.min() >= 0
        assert copies.max() <= 1
        assert 0.2 < float((copies == value).double().mean()) < 0.8


def test_a_table_of_categories_has_no_noisy_copies():
    queries = torch.eye(2).repeat(10, 1)
    columns = (Column("sex", "categorical", 0, 2, categories=("f", "m")),)
    scores = scores_of(clean_scores, inputs(20, 12))
    knowledge = AttackerKnowledge(
        queries, None, queries, torch.arange(20) < 5, query=lambda rows, n: rows.expand(n, -1, -1)
    )
    records = MatchedScores(knowledge, queries)
    assert list(GalleryMatching(queries, records, 0, columns).results(records)) == [TRUE_INPUTS]
    assert list(GalleryMatching(inputs(20, 12), scores, 0).results(scores)) == [
        TRUE_INPUTS,
        NOISY_COPIES,
    ]

"""Several answers: what they name beside enumeration, what they tell, and how a fit lessens it."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.defenses.codebook import (
    Certificate,
    CodebookRelease,
    FitSettings,
    certify,
    composition,
    cut_calibration,
    fit_codebook,
    merge_calibration,
)
from oneway.defenses.codebook.composition import WARD, largest_share, numbers_of_answers
from oneway.defenses.codebook.crossings import crossings_between
from oneway.defenses.codebook.release import Rows
from oneway.errors import InvalidTensorError
from oneway.evaluation import compare_with_clean_scores
from oneway.targets import TorchTarget, ask_variants, jitter


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def asked():
    """Scores of 200 queries, and of 15 changed copies of each: most stay near, some do not."""
    logits, _ = scored(0, 200)
    far = torch.randn(200, 15, 4, generator=seeded(1)).double()
    return logits, logits.unsqueeze(1) + 0.3 * far


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_crossings_are_the_pairs_of_answers_that_two_boxes_part(places, boxes):
    # Answers at .55 to .8 of label 0 (place 5: label 1), and boxes that end in between.
    top = torch.tensor([[0.55 + 0.05 * place for place in row] for row in places]).double()
    top = torch.where(torch.tensor(places) == 5, 0.2, top)
    answers = torch.stack([top, 1 - top], -1).log()
    edges = torch.tensor([[0.575 + 0.05 * box, torch.inf] for box in range(boxes)])
    edges = torch.cat([edges, torch.full((1, 2), torch.inf)]).double()
    found = crossings_between(answers, 0, torch.tensor([0, 1]), edges, dense=True)
    wanted = np.zeros((boxes + 1, boxes + 1))
    for row in places:
        for one, other in itertools.combinations(row, 2):
            first, second = min(one, boxes), min(other, boxes)
            if one != 5 and other != 5 and first != second:
                wanted[first, second] += 1 / 3
                wanted[second, first] += 1 / 3
    assert found.numpy() == pytest.approx(wanted)


def test_shares_are_the_different_sequences_beside_the_bound(asked):
    logits, variants = asked
    book = fit_codebook(logits, FitSettings(min_members=10, rate_weight=0))
    found = certify(book, logits, variants=variants).composition
    assert [row.answers for row in found.rows] == [1, 4, 16] == numbers_of_answers(16)
    answers = torch.cat([logits.unsqueeze(1), variants], 1)
    before = 0.0
    for row in found.rows:
        sequences = [tuple(book(each).tolist()) for each in answers[:, : row.answers]]
        assert row.release == pytest.approx(len(set(sequences)) / 200)
        labels = {tuple(each) for each in answers[:, : row.answers].argmax(-1).tolist()}
        assert row.label == pytest.approx(len(labels) / 200)
        assert row.most == min(200, book.sizes.cells**row.answers) / 200
        assert row.label <= row.release <= row.most
        assert before <= row.release  # more answers tell no less
        before = row.release
    ward = [
        len({sequences[place] for place in np.random.default_rng(seed).permutation(200)[:WARD]})
        for seed in range(400)
    ]
    assert found.rows[-1].release_of_ward == pytest.approx(np.mean(ward) / WARD, abs=0.02)


def test_copies_that_are_not_changed_tell_nothing_more(asked):
    logits, _ = asked
    book = fit_codebook(logits, FitSettings(min_members=10))
    found = certify(book, logits, variants=logits.unsqueeze(1).expand(-1, 15, -1)).composition
    assert len({(row.release, row.label, row.release_of_ward) for row in found.rows}) == 1


@given(st.integers(1, 10_000), st.integers(2, 300), st.integers(1, 40))
def test_the_bound_is_that_of_whole_numbers(distinct, cells, answers):
    assert largest_share(distinct, cells, answers) == pytest.approx(
        min(distinct, cells**answers) / distinct
    )


def test_copies_of_a_query_are_one_candidate(asked):
    logits, variants = asked
    book = fit_codebook(logits, FitSettings(min_members=10))
    queries = torch.rand(200, 1, 2, 2, generator=seeded())
    queries[100:] = queries[:100]
    found = certify(book, logits, queries, variants=variants).composition
    alone = certify(book, logits[:100], queries[:100], variants=variants[:100]).composition
    assert found == alone
    assert found.distinct == 100


def test_a_weight_joins_the_cells_that_copies_move_between():
    # Three heaps of one label: the third is nearest to the first, whose copies are in the second.
    heaps = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.2, 0.3], [0.55, 0.3, 0.15]]).double()
    owners = torch.arange(90) % 3
    logits = (heaps[owners] + 0.002 * torch.rand(90, 3, generator=seeded()).double()).log()
    moved = heaps[torch.where(owners == 2, 2, 1 - owners)].log()
    variants = torch.stack([moved, logits], 1)

    def cells(weight):
        fitting = FitSettings(
            min_members=10, max_boxes=3, max_cells=4, rate_weight=0, variant_weight=weight
        )
        calibration = cut_calibration(logits, fitting, variants=variants)
        return merge_calibration(calibration, 0.0)(logits)[:3].tolist()

    first, second, third = cells(0.0)
    assert first == third != second
    first, second, third = cells(1.0)
    assert first == second != third


def test_a_weight_parts_fewer_answers_at_no_more_cells(asked):
    logits, variants = asked
    parted = {}
    for weight in (0.0, 0.1, 1.0):
        fitting = FitSettings(min_members=5, rate_weight=0.001, variant_weight=weight)
        book = merge_calibration(cut_calibration(logits, fitting, variants=variants), 0.001)
        rows = certify(book, logits, variants=variants).composition.rows
        parted[weight] = rows[-1].release, book.sizes.cells
    assert parted[0.0] > parted[0.1] > parted[1.0]


def test_noise_turns_a_coarse_answer_into_a_fine_one(monkeypatch):
    monkeypatch.setattr(composition, "ANSWERS", (1,))  # and all 16
    # One answer says whether x is above 1/2; the share of answers above it says x.
    values = torch.rand(300, generator=seeded())
    images = values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    noisy = values.unsqueeze(1) + 0.3 * torch.randn(300, 16, generator=seeded(1))
    noisy[:, 0] = values
    scores = 3 * torch.stack([torch.zeros_like(noisy), noisy - 0.5], -1).double()
    logits, variants = scores[:, 0], scores[:, 1:]
    book = fit_codebook(logits[:100], FitSettings(min_members=20, rate_weight=torch.inf))
    traffic, rest = Rows(logits, images, variants), torch.arange(100, 300)
    certificate = certify(book, logits[rest], images[rest], variants=variants[rest])
    found = compare_with_clean_scores(certificate, book, traffic, rest, torch.arange(100))
    one, many = found.composition.rows
    assert many.error < 0.65 * one.error
    gaps = [found.composition.gap(row) for row in (one, many)]
    assert gaps[1] < 0.65 < 0.85 < gaps[0]


def test_the_figures_survive_a_file_and_impossible_ones_are_refused(asked, tmp_path):
    logits, variants = asked
    settings_used = FitSettings(min_members=20, variant_weight=0.1)
    guard = CodebookRelease.fit(
        logits, generator=seeded(), settings=settings_used, variants=variants
    )
    guard.save(tmp_path / "guard.safetensors")
    whole = CodebookRelease.load(tmp_path / "guard.safetensors").certificate
    assert whole == guard.certificate
    assert Certificate.from_json(whole.as_json()) == whole
    several = whole.composition
    assert several.distinct == 40  # a fifth certifies
    first, *others = several.rows
    for change in (
        {"distinct": 10_000},
        {"rows": ()},
        {"rows": tuple(reversed(several.rows))},
        {"rows": (dataclasses.replace(first, most=0.5), *others)},
        {"rows": (dataclasses.replace(first, release=1.5), *others)},
        {"rows": (dataclasses.replace(first, label=1.0), *others)},
        {"rows": (first, dataclasses.replace(others[0], error=2.0), *others[1:])},
        {"clean": 2.0},
        {"clean": 0.01},
    ):
        broken = dataclasses.replace(whole, composition=dataclasses.replace(several, **change))
        assert broken.fault(guard.state) is not None, change


@pytest.mark.parametrize("shape", [(200, 4), (199, 2, 4), (200, 2, 5), (200, 0, 4)])
def test_variants_of_another_shape_are_refused(asked, shape):
    logits, _ = asked
    book = fit_codebook(logits, FitSettings())
    with pytest.raises(InvalidTensorError, match="m changed copies"):
        certify(book, logits, variants=torch.zeros(shape) - 1)


def test_a_weight_without_variants_is_refused(asked):
    with pytest.raises(InvalidTensorError, match="variants must be given"):
        fit_codebook(asked[0], FitSettings(variant_weight=0.1))


def test_changed_copies_stay_inputs_and_are_asked_about():
    images = torch.rand(3, 1, 8, 8, generator=seeded())
    records = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    for inputs in (images, records):
        changed = jitter(inputs, seeded())
        assert changed.shape == inputs.shape
        assert not torch.equal(changed, inputs)
        assert torch.equal(changed, jitter(inputs, seeded()))
        assert changed.min() >= inputs.min() * (inputs.ndim == 2)
        assert changed.max() <= max(1.0, float(inputs.max()))
    assert torch.equal(jitter(records, seeded())[:, 1], records[:, 1])  # it says nothing
    target = TorchTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
    found = ask_variants(target, images, 2, seeded(4))
    generator = seeded(4)
    wanted = [target.logits(jitter(images, generator)) for _ in range(2)]
    assert torch.equal(found, torch.stack(wanted, 1))

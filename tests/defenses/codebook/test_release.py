"""The release: what is answered, what is certified, and what a file must be to be believed."""

import copy
import itertools
import json
import math
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from defenses.codebook.scored import scored
from oneway.checks import FLOATING
from oneway.contracts import TrainingData
from oneway.defenses.codebook import (
    Budget,
    Codebook,
    CodebookOptions,
    CodebookRelease,
    FitSettings,
    certify,
    cut_calibration,
    fit_codebook,
    measure_codebook,
    merge_calibration,
    table,
)
from oneway.defenses.codebook.boxes import DIGITS
from oneway.defenses.codebook.fit import RATE_WEIGHTS
from oneway.defenses.codebook.table import MAX_OFFSET, Sizes, first_box
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    InvalidTensorError,
    MissingDataError,
)
from oneway.files import write_tensors
from oneway.releases import release as released_as
from reference import codebook as slow
from rows import leads, random_rows, same_bits

SETTINGS = FitSettings(min_members=10, rate_weight=0.02)


def settings_of(rate_weight, explicit_classes=32, min_members=10):
    return FitSettings(
        min_members=min_members, rate_weight=rate_weight, explicit_classes=explicit_classes
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def release():
    return CodebookRelease.fit(*scored(1, 800), generator=seeded(), settings=SETTINGS)


# What is answered.


def test_every_query_of_a_cell_is_answered_the_mean_of_its_calibration():
    logits, asked = scored(1, 800)[0], scored(2, 500)[0]
    clean = slow.softmaxes(logits.numpy())
    for explicit in (4, 2):
        book = fit_codebook(logits, settings_of(0.02, explicit))
        answers = CodebookRelease(book)(asked)
        cells, members = book(asked).tolist(), book(logits).tolist()
        for row, cell in zip(answers.softmax(-1), cells, strict=True):
            mean = clean[[place for place, other in enumerate(members) if other == cell]].mean(0)
            order = book.classes[book.labels[cell]].tolist()
            rest = [k for k in range(4) if k not in order]
            mean[rest] = mean[rest].mean() if rest else 0
            np.testing.assert_allclose(row.numpy(), mean, rtol=0, atol=2.0 ** (1 - DIGITS))
        assert len(answers.unique(dim=0)) == len(set(cells)) > 6, f"{explicit} explicit classes"
        assert leads(answers, asked.argmax(-1))


def test_logits_of_a_cell_are_as_high_as_its_members_are(release):
    asked = scored(1, 800)[0]
    told = release(asked)
    cells = release.state(asked)
    high = told.logsumexp(-1)
    for cell in cells.unique().tolist():
        assert float(high[cells == cell].std()) < 1e-12
        own = asked[cells == cell].logsumexp(-1)
        assert own.min() - 0.5 <= high[cells == cell][0] <= own.max() + 0.5


def test_each_type_is_answered_as_exactly_as_it_can_be(release):
    for dtype in FLOATING:
        asked = scored(2, 500)[0].to(dtype)
        answers = release(asked)
        assert answers.dtype == dtype
        assert leads(answers, asked.argmax(-1)), dtype
        assert leads(released_as(answers, dtype=dtype), asked.argmax(-1)), dtype
        wide = release(asked.double())
        if torch.finfo(dtype).bits < 32:
            wide = wide.log_softmax(-1)
        # Half a unit in the last place, and one for a label that was lifted.
        slack = 1.5 * torch.finfo(dtype).eps * wide.abs().amax(-1, keepdim=True)
        assert ((answers.double() - wide).abs() <= slack.clamp_min(1e-12)).all(), dtype
        assert len(answers.unique(dim=0)) <= release.state.sizes.cells


def test_one_lookup_gives_what_a_release_makes_of_the_answer():
    asked = scored(2, 200)[0]
    for explicit, decimals in itertools.product((4, 2), (None, 2)):
        book = fit_codebook(scored(1, 400)[0], settings_of(0.02, explicit))
        release = CodebookRelease(book)
        for dtype in FLOATING:
            looked_up = release.probabilities(asked, dtype=dtype, decimals=decimals)
            wanted = released_as(release(asked), dtype=dtype, decimals=decimals)
            assert same_bits(looked_up, wanted), (explicit, decimals, dtype)
        # And the released values of each cell are those, of float32 scores.
        answers = release.probabilities(asked.float())
        cells = book(asked.float())
        assert torch.equal(book.expand(release.released_values(), cells), answers)


def test_narrow_types_release_what_was_certified_however_high_the_logits_are():
    logits = scored(1, 400)[0] + 100
    book = fit_codebook(logits, settings_of(0.02))
    assert book.offsets.min() > 90
    for dtype in (torch.float16, torch.bfloat16):
        asked = logits.to(dtype)
        released = released_as(CodebookRelease(book)(asked), dtype=torch.float64)
        certified = book.expand(book.values, book(asked))
        # A logit is off by half a unit in its last place, and exp(logit) by that times itself,
        # p log p; the sum that all are divided by is off by as much again.
        eps = torch.finfo(dtype).eps
        off = eps / 2 * certified * certified.log().abs()
        slack = off + certified * off.sum(-1, keepdim=True)
        # A label that would tie is lifted by a step.
        slack = slack + eps * certified.amax(-1, keepdim=True)
        assert ((released - certified).abs() <= 1.01 * slack).all(), dtype
        assert float((released - certified).abs().sum(-1).max()) < 0.01, dtype
        wide = released_as(CodebookRelease(book)(asked.float()), dtype=torch.float64)
        assert torch.allclose(wide, certified, rtol=0, atol=1e-4), dtype


def test_many_rows_are_looked_up_in_parts_and_told_the_same(monkeypatch):
    asked = scored(2, 300)[0].float()
    for listed in (4, 2):
        book = fit_codebook(
            scored(1, 400)[0], FitSettings(min_members=10, rate_weight=0.0, explicit_classes=listed)
        )
        whole = CodebookRelease(book)
        told = whole(asked), whole.probabilities(asked)
        seen = []

        def watched(rows, edges, seen=seen):
            seen.append(edges.numel())
            return first_box(rows, edges)

        with monkeypatch.context() as patch:
            most = 7 * book.edges[0].numel()
            patch.setattr(table, "NUMBERS_AT_ONCE", most)
            patch.setattr(table, "first_box", watched)
            parted = CodebookRelease(book)
            assert same_bits(parted(asked), told[0])
            assert same_bits(parted.probabilities(asked), told[1])
            assert parted(asked[:0]).shape == (0, 4)
            assert len(seen) >= 2 * 300 // 7
            assert max(seen) <= most


def test_more_axes_no_rows_and_inference_change_nothing(release):
    asked = scored(2, 60)[0]
    told = release(asked)
    assert same_bits(release(asked.view(3, 20, 4)).view(60, 4), told)
    assert same_bits(release(asked[7]), told[7].clone())
    assert release(asked[:0]).shape == (0, 4)
    with torch.inference_mode():
        other = CodebookRelease(release.state)
        assert torch.equal(other(asked), told)
    assert torch.equal(other(asked), told)
    assert not release(asked.clone().requires_grad_()).requires_grad


def test_scores_over_other_classes_are_refused(release):
    for wrong in (torch.zeros(2, 3), torch.zeros(2, 5)):
        with pytest.raises(InvalidTensorError, match=r"over the 4 classes .* Fit it"):
            release(wrong)


def test_labels_that_tie_are_answered_with_a_label_that_leads():
    release = CodebookRelease(
        fit_codebook(torch.zeros(60, 30), FitSettings(min_members=5, explicit_classes=20))
    )
    for dtype in FLOATING:
        asked = random_rows(0, 50, 30, dtype, 1)
        asked[0] = 0
        told = release(asked)
        assert leads(told, asked.argmax(-1))
        assert leads(released_as(told), asked.argmax(-1))


# How it is fitted.


def test_a_share_of_the_queries_certifies_and_does_not_fit(release):
    logits, images = scored(1, 800)
    order = torch.randperm(800, generator=seeded())
    held_out, fitted = order[:160], order[160:]
    book = fit_codebook(logits[fitted], SETTINGS)
    for name, tensor in book.state_dict().items():
        assert torch.equal(tensor, release.state.state_dict()[name])
    told = release.certificate
    assert told.held_out.answer == "yes"
    assert told.queries == told.error.queries == 160
    assert told.bits_measured == pytest.approx(
        slow.entropy_beyond_label(
            book(logits[held_out]).tolist(), logits[held_out].argmax(-1).tolist()
        )
    )
    assert told.error.estimate == pytest.approx(
        slow.within_cells(book(logits[held_out]).numpy(), images[held_out].flatten(1).numpy())
    )


def test_without_a_share_the_same_queries_do_both_and_the_certificate_says_so():
    logits, images = scored(1, 300)
    release = CodebookRelease.fit(logits, images, generator=seeded(), settings=SETTINGS, held_out=0)
    assert release.certificate.held_out.answer == "no"
    assert release.certificate.queries == 300
    assert release.certificate.members_least >= 10
    assert release.state.members.sum() == 300
    # A share of which nothing is left is not taken for none, nor is one of two groups.
    for share, groups in ((0.009, None), (0.2, torch.arange(50) % 2)):
        with pytest.raises(InvalidOptionError, match=r"leaves none\. Pass more, or hold out"):
            CodebookRelease.fit(
                logits[:50], generator=seeded(), settings=SETTINGS, held_out=share, groups=groups
            )


def test_a_budget_chooses_the_weight_on_the_queries_that_fit_alone():
    logits, images = scored(1, 800)
    budget = Budget(bits=2.0)
    release = CodebookRelease.fit(
        logits, images, generator=seeded(), settings=SETTINGS, budget=budget
    )
    order = torch.randperm(800, generator=seeded())
    fitting, certifying = order[160:], order[:160]
    cells, labels = release.state(logits[fitting]), logits[fitting].argmax(-1)
    assert slow.entropy_beyond_label(cells.tolist(), labels.tolist()) <= 2
    assert release.certificate.bits_measured < 2.3
    assert release.state.sizes.cells > 4
    # Where scores of the certifying queries are far from all vectors, they do not count.
    logits[certifying] *= 0.1
    calibration = cut_calibration(logits[fitting], SETTINGS)
    wanted = merge_calibration(calibration, RATE_WEIGHTS[6])
    limit = measure_codebook(wanted, logits[fitting]).l1_mean
    chosen = CodebookRelease.fit(
        logits, generator=seeded(), settings=SETTINGS, budget=Budget(l1_mean=limit)
    )
    assert chosen.state.digest() == wanted.digest()
    assert measure_codebook(wanted, logits).l1_mean > limit


def test_a_table_is_certified_after_it_was_moved():
    seen = []

    def move(book, scores, queries):
        seen.extend([len(scores), len(queries)])
        other = Codebook(**book.architecture)
        other.load_state_dict(book.state_dict())
        other.values.copy_(1 / 4 + 0.9 * (other.values - 1 / 4))
        return other

    logits, images = scored(1, 800)
    plain, moved = (
        CodebookRelease.fit(
            logits, images, generator=seeded(), settings=SETTINGS, move=way
        ).certificate
        for way in (None, move)
    )
    assert seen == [640, 640]
    assert moved.table != plain.table
    assert moved.error == plain.error
    assert (
        moved.distortion["l1_probabilities"]["mean"] > plain.distortion["l1_probabilities"]["mean"]
    )


def test_a_fit_is_its_generator_s_and_reports_its_progress():
    logits, images = scored(1, 600)
    shares = []
    one, again, other = (
        CodebookRelease.fit(
            logits, images, generator=seeded(seed), settings=SETTINGS, on_share=shares.append
        )
        for seed in (1, 1, 2)
    )
    assert shares == [0.25, 0.5, 0.75, 1.0] * 3
    assert one.certificate == again.certificate
    assert one.certificate.table != other.certificate.table


def test_what_cannot_be_fitted_is_refused():
    logits, images = scored(1, 300)
    options = {"generator": seeded(), "settings": SETTINGS}
    with pytest.raises(InvalidTensorError, match=r"N >= 10.*Pass more calibration"):
        CodebookRelease.fit(logits[:9], images[:9], held_out=0, **options)
    with pytest.raises(InvalidTensorError, match=r"held_out 0\.2 leaves 9 of 11 .*lower held_out"):
        CodebookRelease.fit(logits[:11], images[:11], **options)
    with pytest.raises(InvalidTensorError, match=r"N >= 2, but got \(1, 4\)"):
        CodebookRelease.fit(logits, held_out=0.004, **options)
    for wrong in (logits[0], logits[:, None]):
        with pytest.raises(InvalidTensorError, match=r"must have shape \(N, K\), but got"):
            CodebookRelease.fit(wrong, **options)
    with pytest.raises(InvalidTensorError, match="one per row of scores, 300, but got 299"):
        CodebookRelease.fit(logits, images[1:], **options)
    with pytest.raises(InvalidTensorError, match=r"\[0, 1\]"):
        CodebookRelease.fit(logits, 255 * images, **options)
    with pytest.raises(InvalidTensorError, match="calibration logits must be finite"):
        CodebookRelease.fit(logits / 0, images, **options)
    with pytest.raises(InvalidTensorError, match="images must be given"):
        CodebookRelease.fit(logits, generator=seeded(), settings=FitSettings(image_weight=1.0))
    with pytest.raises(InvalidOptionError, match="no codebook of 10 members keeps within"):
        CodebookRelease.fit(logits, images, budget=Budget(l1_mean=1e-9), **options)
    for share in (1, 1.5, -0.1, math.nan, True, "0.2"):
        with pytest.raises(InvalidOptionError, match=r"^held_out must be"):
            CodebookRelease.fit(logits, images, held_out=share, **options)


def training_data(**kept):
    logits, images = scored(1, 400)
    return TrainingData(None, None, None, images, logits, **kept)


def test_training_fits_to_the_operator_s_queries_or_else_to_auxiliary_ones():
    options = {"min_members": 10, "rate_weight": 0.02}
    logits, images = scored(2, 500)
    kept = {"calibration_images": images, "calibration_logits": logits}
    for given, rows in (
        (training_data(**kept), (logits, images)),
        (training_data(), scored(1, 400)),
    ):
        shares = []
        table, figures = CodebookRelease.train(
            given, generator=seeded(), on_epoch=shares.append, **options
        )
        wanted = CodebookRelease.fit(*rows, generator=seeded(), settings=SETTINGS)
        for name, tensor in wanted.state.state_dict().items():
            assert torch.equal(table.state_dict()[name], tensor)
        assert figures == wanted.figures
        assert shares[-1] == 1.0
        told = wanted.certificate
        assert figures == {
            "cells": table.sizes.cells,
            "bits_most": told.bits_most,
            "bits_measured": told.bits_measured,
            "members_least": told.members_least,
            "certified_queries": len(rows[0]) // 5,
            "certified_error": told.error.estimate,
            "certified_error_low": told.error.low,
            "certified_error_high": told.error.high,
            "certified_error_lower_bound": told.error.lower_bound,
        }
        json.dumps(figures, allow_nan=False)
    assert CodebookRelease(table).figures == {"cells": table.sizes.cells}


def test_options_of_training_reach_the_fit():
    def train(**options):
        options = {"min_members": 10, "rate_weight": 0.02} | options
        return CodebookRelease.train(training_data(), generator=seeded(), **options)

    plain = train()
    # A label with fewer has one vector.
    table, figures = train(min_members=40)
    assert figures["members_least"] >= 40 or table.shared.any()
    assert train(min_members=100, shared_levels=2)[0].sizes.cells == 8
    assert train(rate_weight=math.inf)[0].sizes.cells == 4
    assert train(explicit_classes=2)[0].sizes.explicit_classes == 2
    assert train(image_weight=100.0)[0].sizes.cells < plain[0].sizes.cells
    assert train(held_out=0.5)[1]["certified_queries"] == 200
    assert train(l1_budget=2.0)[0].sizes.cells == 4


def test_training_options_outside_their_range_are_refused_before_any_work():
    for option, value in (
        ("min_members", 0),
        ("rate_weight", -1),
        ("image_weight", math.inf),
        ("explicit_classes", 0),
        ("l1_budget", -0.1),
        ("held_out", 1.0),
        ("held_out", -0.2),
    ):
        with pytest.raises(InvalidOptionError, match=f"^{option} must be"):
            CodebookOptions(**{option: value})


# What a file must be.


@pytest.fixture
def stored(release, tmp_path):
    path = tmp_path / "folder" / "codebook.safetensors"
    release.save(path)
    return path


def test_a_release_comes_back_bit_for_bit_with_its_certificate(release, stored):
    loaded = CodebookRelease.load(stored)
    assert loaded.certificate == release.certificate
    assert loaded.figures == release.figures
    assert loaded.state.architecture == release.state.architecture
    for name, tensor in release.state.state_dict().items():
        assert torch.equal(loaded.state.state_dict()[name], tensor)
        assert loaded.state.state_dict()[name].dtype == tensor.dtype
    for dtype in FLOATING:
        asked = scored(2, 200)[0].to(dtype)
        assert same_bits(loaded(asked), release(asked))
    # And again.
    loaded.save(stored.with_name("again"))
    assert stored.with_name("again").read_bytes() == stored.read_bytes()


def test_a_release_without_a_certificate_comes_back_without(tmp_path):
    for explicit in (4, 1):
        release = CodebookRelease(fit_codebook(scored(1, 300)[0], settings_of(0.0, explicit)))
        release.save(tmp_path / "bare")
        loaded = CodebookRelease.load(tmp_path / "bare")
        assert loaded.certificate is None
        assert same_bits(loaded(scored(2, 90)[0]), release(scored(2, 90)[0])), explicit


def parts_of(path):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["oneway"])
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def refusal(path):
    with pytest.raises(CorruptDataError) as caught:
        CodebookRelease.load(path)
    return str(caught.value)


def test_a_changed_byte_of_any_tensor_is_seen(stored):
    whole = stored.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    checked = 0
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in facts["data_offsets"])
        for place in {start, (start + end) // 2, end - 8}:
            changed = bytearray(whole)
            changed[place] ^= 1
            stored.write_bytes(changed)
            text = refusal(stored)
            assert str(stored) in text
            assert "another table" in text or "broken" in text
            checked += 1
    assert checked >= 14
    stored.write_bytes(whole)
    CodebookRelease.load(stored)


def test_a_certificate_of_another_table_is_refused_with_the_remedy(release, stored, tmp_path):
    other = CodebookRelease.fit(*scored(3, 400), generator=seeded(), settings=SETTINGS)
    other.save(tmp_path / "other")
    tensors, header = parts_of(stored)
    header["certificate"] = parts_of(tmp_path / "other")[1]["certificate"]
    write_tensors(stored, tensors, header)
    text = refusal(stored)
    assert "is about another table" in text
    assert "Fit it again" in text
    for digest in (release.certificate.table, other.certificate.table):
        assert digest not in text


def test_a_truncated_file_is_refused(stored):
    whole = stored.read_bytes()
    for length in (0, 5, round(0.3 * len(whole)), round(0.9 * len(whole)), len(whole) - 1):
        stored.write_bytes(whole[:length])
        assert "is not a codebook that oneway wrote" in refusal(stored), f"{length} bytes"


def test_what_is_no_codebook_is_refused(stored, tmp_path):
    tensors, header = parts_of(stored)
    with pytest.raises(MissingDataError, match=r"no codebook file .*`oneway codebook`"):
        CodebookRelease.load(tmp_path / "nowhere")
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x04nonsense")
    assert "is not a codebook" in refusal(path)
    save_file({"values": torch.zeros(2)}, path)
    assert "is not a codebook" in refusal(path)
    write_tensors(path, tensors, header | {"kind": "purification"})
    assert "holds a 'purification', not a codebook. Pass a file" in refusal(path)
    secret = 0.123456789
    tensors["values"][0, 0] = secret
    broken = [
        {key: value for key, value in header.items() if key != "certificate"},
        {key: value for key, value in header.items() if key != "kind"},
        header | {"certificate": []},
        header | {"certificate": {"table": "a"}},
        header | {"certificate": 3},
        header | {"architecture": []},
        header | {"architecture": {**header["architecture"], "cells": 4}},
        header | {"architecture": {**header["architecture"], "boxes": 0}},
        header | {"architecture": {**header["architecture"], "depth": 2}},
        header | {"architecture": {**header["architecture"], "boxes": "2"}},
        header | {"certificate": {**header["certificate"], "error": 3}},
        header | {"certificate": {**header["certificate"], "level": "0.95"}},
        header | {"certificate": {**header["certificate"], "error_by_label": 3}},
    ]
    for one in broken:
        write_tensors(path, tensors, one)
        text = refusal(path)
        assert "is not a codebook that oneway wrote" in text
        assert str(secret)[:6] not in text
    for other in ({"format": 1}, {"format": None}):
        write_tensors(path, tensors, header | other)
        assert "by another version of oneway. Fit it again with `oneway codebook`" in refusal(path)
    for name in tensors:
        few = {key: value for key, value in tensors.items() if key != name}
        write_tensors(path, few, header)
        assert "is not a codebook that oneway wrote" in refusal(path)
    write_tensors(path, tensors | {"more": torch.zeros(1)}, header)
    assert "is not a codebook that oneway wrote" in refusal(path)


def test_the_tensors_that_sizes_promise_are_those_of_a_table():
    for sizes in ((2, 1, 1, 2), (3, 3, 4, 7), (5, 4, 2, 9), (6, 2, 3, 6)):
        made = Codebook(*sizes).state_dict()
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()}
        assert Sizes(*sizes).tensors == found


def test_sizes_that_the_tensors_do_not_have_take_no_memory(stored, monkeypatch):
    tensors, header = parts_of(stored)

    monkeypatch.setattr(Codebook, "__init__", None)  # never asked
    for size in ("boxes", "cells", "num_classes"):
        for claimed in (2_000_000, 2**40, 10**30):
            sizes = {**header["architecture"], size: claimed}
            write_tensors(stored, tensors, header | {"architecture": sizes})
            assert "is not a codebook that oneway wrote" in refusal(stored), (size, claimed)


def test_tensors_of_another_type_or_shape_are_refused_by_name(stored):
    tensors, header = parts_of(stored)
    for name in ("values", "edges", "offsets", "members", "classes"):
        tensor = tensors[name]
        other = torch.int32 if tensor.dtype == torch.int64 else torch.float32
        wanted = f"the tensor {name} is {str(tensor.dtype)[6:]} of shape {tuple(tensor.shape)}"
        for changed in (tensor.to(other), tensor.unsqueeze(0)):
            write_tensors(stored, tensors | {name: changed.contiguous()}, header)
            text = refusal(stored)
            assert wanted in text
            assert f"there is {str(changed.dtype)[6:]} of shape {tuple(changed.shape)}" in text


def test_logits_as_high_as_a_type_goes_are_fitted_to_a_table_that_can_be_read(tmp_path):
    logits = scored(1, 300)[0] + 1e9
    fitted = CodebookRelease.fit(logits, generator=seeded(), settings=SETTINGS)
    assert float(fitted.state.offsets.max()) == MAX_OFFSET
    fitted.save(tmp_path / "high")
    assert CodebookRelease.load(tmp_path / "high").certificate == fitted.certificate


ERROR_OF_ONE = {
    **{"estimate": 0.0, "low": 0.0, "high": 0.1, "lower_bound": 0.0},
    **{"queries": 1, "alone": 1.0},
}

UNTRUE = {
    "more bits": ({"bits_most": 60.0}, "its bits_most is not that of the table"),
    "fewer bits": ({"bits_most": 0.5}, "its bits_most is not that of the table"),
    "no bits": ({"bits_most": None}, "its bits_most is not that of the table"),
    "more members": ({"members_least": 10**6}, "its members_least is not that of the table"),
    "labels alone": ({"labels_alone": 1}, "its labels_alone is not that of the table"),
    "sure of all": ({"level": 1.0}, "level is not between 0 and 1"),
    "sure of nothing": ({"level": 0.0}, "level is not between 0 and 1"),
    "no level": ({"level": math.nan}, "level is not between 0 and 1"),
    "no queries": ({"queries": 0}, "queries is not a number of queries"),
    "fewer shared than none": (
        {"held_out": {"answer": "yes", "shared": -2}},
        "a number of shared queries is out of range",
    ),
    "no bits in many cells": ({"bits_measured": 0.0}, "are not those of the cells"),
    "cells of another table": ({"traffic": {"cells": [160]}}, "how many queries each cell has"),
    "more distinct than all": ({"traffic": {"distinct": 161}}, "number of distinct is out"),
    "more frequent than all": ({"traffic": {"commonest": 1.2}}, "commonest is not a share"),
    "a share of no groups": ({"traffic": {"group_share": 0.5}}, "group_share is not a share"),
    "a cell that does not exist": (
        {"parts": {"cell": {"errors": {"99": ERROR_OF_ONE}, "few": 0, "few_share": 0.0}}},
        "the error of a cell is certified on another number",
    ),
    "a tight cell left out": (
        {"parts": {"cell": {"errors": {}, "few": 0, "few_share": 0.0}}},
        "it certifies another number of cells than have enough queries",
    ),
    "a tight label left out": ({"error_by_label": {}}, "another number of labels than have enough"),
    "no cells": ({"parts": {}}, "it does not certify the cells by themselves"),
    "fewer alone": ({"error": {"alone": 0.5}}, "the share of queries that are alone"),
    "groups that were not given": ({"groups_least": 10}, "its groups_least is not that"),
    "a day that does not exist": ({"certified_on": "2026-02-30"}, "a day that does not exist"),
    "measured above the most": ({"bits_measured": 61.0}, "bits_measured is out of range"),
    "measured below none": ({"bits_measured": -0.1}, "bits_measured is out of range"),
    "measured as nothing": ({"bits_measured": math.nan}, "bits_measured is out of range"),
    "too much error": ({"error": {"estimate": 1.5}}, "the estimate of an error"),
    "an endless error": ({"error": {"lower_bound": math.inf}}, "the lower_bound of an error"),
    "less than no error": ({"error": {"low": -0.1}}, "the low of an error"),
    "a bound above its estimate": ({"error": {"lower_bound": 0.9}}, "is not between its bounds"),
    "an interval upside down": ({"error": {"high": 0.0}}, "the interval of an error"),
    "more alone than all": ({"error": {"alone": 1.1}}, "the alone of an error"),
    "more queries than all": ({"error": {"queries": 161}}, "on a number of queries that cannot be"),
    "a label's error": ({"error_by_label": {"0": {"estimate": -1.0}}}, "the estimate of an error"),
    "fewer parts than none": (
        {"parts": {"cell": {"errors": {}, "few": -1, "few_share": 0.0}}},
        "the parts with few queries",
    ),
    "more than all in few": (
        {"parts": {"cell": {"errors": {}, "few": 1, "few_share": 1.5}}},
        "the parts with few queries",
    ),
    "parts of another kind": (
        {"parts": {"pixel": {"errors": {}, "few": 0, "few_share": 0.0}}},
        "parts of a kind that does not exist",
    ),
    "distortion of none": ({"distortion": {}}, "distortion of l1_probabilities"),
    "too far": (
        {"distortion": {"l1_probabilities": {"max": 2.5}, "logits": {"max": 1.0}}},
        "distortion of l1_probabilities",
    ),
    "endlessly far": (
        {"distortion": {"l1_probabilities": {"max": 1.5}, "logits": {"max": math.inf}}},
        "distortion of logits",
    ),
}


def test_a_certificate_that_says_what_cannot_be_is_refused(stored):
    tensors, header = parts_of(stored)
    for fault, (changes, text) in UNTRUE.items():
        certificate = copy.deepcopy(header["certificate"])
        for name, value in changes.items():
            if name in ("error", "traffic"):
                certificate[name].update(value)
            elif name == "error_by_label" and value:
                certificate[name]["0"] = certificate["error"] | value["0"]
            else:
                certificate[name] = value
        write_tensors(stored, tensors, header | {"certificate": certificate})
        message = refusal(stored)
        assert text in message, fault
        assert "the certificate in" in message, fault


def test_a_certified_label_that_there_is_not_is_refused(stored):
    tensors, header = parts_of(stored)
    told = header["certificate"]
    told["error_by_label"]["4"] = told["error"]
    write_tensors(stored, tensors, header)
    assert "a label that does not exist" in refusal(stored)


def sparse_book():
    """Two explicit classes of four, several boxes and cells."""
    return fit_codebook(
        scored(1, 400)[0], FitSettings(min_members=10, rate_weight=0.02, explicit_classes=2)
    )


def put(index, value):
    def change(tensor):
        tensor[index] = value

    return change


def swap_a_share(values):
    """Give a rival what the label had: still positive, still summing to 1."""
    values[0, 0], values[0, 1] = values[0, 1].clone(), values[0, 0].clone()


def close_the_last_box(edges):
    edges[1][(edges[1] == torch.inf).all(-1)] = 0.5


FAULTS = {
    "a box of no cell": (
        "assignment",
        put((0, 0), 10**6),
        "a box refers to a cell that does not exist",
    ),
    "a box below all cells": ("assignment", put((0, 0), -1), "a box refers to a cell"),
    "an unknown label": ("labels", put(0, 4), "a label is unknown"),
    "a negative label": ("labels", put(0, -1), "a label is unknown"),
    "an unknown class": ("classes", put((1, 1), 4), "a class is unknown"),
    "a negative class": ("classes", put((1, 1), -1), "a class is unknown"),
    "the label second": (
        "classes",
        lambda rows: rows.copy_(rows.flip(-1)),
        "not the first of its classes",
    ),
    "a class twice": ("classes", put((1, 1), 1), "a class is explicit twice"),
    "no edge": ("edges", put((0, 0, 0), math.nan), "an edge is not a number"),
    "no offset": ("offsets", put(2, math.nan), "an offset is not finite"),
    "an endless offset": ("offsets", put(2, math.inf), "an offset is not finite"),
    "too large an offset": ("offsets", put(2, -1.01e6), "an offset is beyond 1e+06 nats"),
    "no probability": ("values", put((0, 1), math.nan), "a probability is not positive"),
    "an endless one": ("values", put((0, 1), math.inf), "a probability is not positive"),
    "a zero": ("values", put((0, 1), 0.0), "a probability is not positive"),
    "a negative one": ("values", put((0, 1), -0.1), "a probability is not positive"),
    "too much": ("values", lambda values: values[0].mul_(1.001), "do not sum to 1"),
    "too little in the rest": ("values", lambda values: values[0, 2].mul_(0.1), "do not sum to 1"),
    "a rival on top": ("values", swap_a_share, "a label is not the largest"),
    "fewer than none": ("members", put(1, -1), "a cell has a negative member count"),
    "a cell of two labels": ("labels", put(0, 3), "do not fit together"),
    "a cell that no box has": (
        "assignment",
        lambda owner: owner[0].fill_(owner[0, 0]),
        "do not fit",
    ),
    "no box for every row": ("edges", close_the_last_box, "do not fit together"),
}


def test_a_table_that_breaks_a_rule_is_refused_with_the_rule_and_no_value(tmp_path):
    book = sparse_book()
    assert book.fault() is None
    state = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    values = {f"{value:.4f}" for value in book.values.flatten().tolist()}
    for fault, (name, change, text) in FAULTS.items():
        book.load_state_dict(state)
        change(book.state_dict()[name])
        assert text in book.fault(), fault
        CodebookRelease(book).save(tmp_path / "book")
        message = refusal(tmp_path / "book")
        assert text in message, fault
        assert "Fit it again" in message
        assert not any(value in message for value in values), fault


def test_every_table_that_is_fitted_is_sound():
    for seed, listed, least in itertools.product((0, 1), (1, 3, 9), (1, 20)):
        logits = random_rows(seed, 120, 5, torch.float32, 4)
        logits[:40] = logits[:40].round()
        calibration = cut_calibration(
            logits, FitSettings(min_members=least, explicit_classes=listed)
        )
        for weight in (0.0, math.inf):
            assert merge_calibration(calibration, weight).fault() is None


def test_a_table_can_be_certified_again_and_kept(release, stored):
    logits, images = scored(5, 300)
    again = CodebookRelease.load(stored)
    again.certificate = certify(again.state, logits, images)
    again.save(stored)
    assert CodebookRelease.load(stored).certificate.queries == 300
    assert release.certificate.queries == 160

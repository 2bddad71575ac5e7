"""Laws of the splits: who has which images, for any data set and any seed."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.data import Dataset, check_disjoint, image_hashes, split_dataset
from oneway.errors import CorruptDataError, InvalidOptionError, OverlappingSplitsError

SEEDS = st.integers(0, 2**32 - 1)
NAMES = ("private", "auxiliary", "test")


def dataset_of(counts, *, copies=1, side=5, official=0, seed=0):
    """Distinct random images, ``counts[k]`` of class k, each ``copies`` times, shuffled.

    Of the distinct images of each class the first ``official`` are the official test set.
    """
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = generator.integers(0, 256, (len(labels), side, side + 2), dtype=np.uint8)
    assert len({image.tobytes() for image in images}) == len(images)
    is_test = np.concatenate([np.arange(count) < official for count in counts])
    order = generator.permutation(np.tile(np.arange(len(labels)), copies))
    return Dataset(
        "generated",
        images[order],
        labels[order].astype(np.int64),
        is_test[order] if official else None,
        len(counts),
    )


def stored_bytes(images, like):
    """Undo padding and scaling, by the documentation rather than the code."""
    height, across = like.images.shape[1:]
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - across) // 2
    inner = images[:, 0, top : top + height, left : left + across]
    return [image.tobytes() for image in (inner * 255).round().to(torch.uint8).numpy()]


def members(splits, dataset):
    return {name: stored_bytes(getattr(splits, f"{name}_images"), dataset) for name in NAMES}


@given(SEEDS, st.integers(1, 3), st.booleans())
def test_splits_share_no_image_and_use_none_twice(seed, copies, with_official):
    dataset = dataset_of([12, 12, 12], copies=copies, official=4 if with_official else 0)
    splits = split_dataset(dataset, private=12, auxiliary=12, test=12, seed=seed)
    used = [image for images in members(splits, dataset).values() for image in images]
    assert len(used) == len(set(used)) == 36
    assert set(used) == {image.tobytes() for image in dataset.images}


@given(SEEDS)
def test_each_image_keeps_its_label(seed):
    dataset = dataset_of([9, 15, 11], official=3)
    label_of = {
        image.tobytes(): label for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    splits = split_dataset(dataset, private=8, auxiliary=7, test=6, seed=seed)
    for name, images in members(splits, dataset).items():
        labels = getattr(splits, f"{name}_labels")
        assert labels.dtype == torch.int64
        assert labels.tolist() == [label_of[image] for image in images]


@given(SEEDS)
def test_test_images_come_from_the_official_test_set_and_no_others_do(seed):
    dataset = dataset_of([10, 10], official=4)
    official = {image.tobytes() for image in dataset.images[dataset.is_test]}
    chosen = members(split_dataset(dataset, private=5, auxiliary=5, test=5, seed=seed), dataset)
    assert set(chosen["test"]) <= official
    assert not official & set(chosen["private"] + chosen["auxiliary"])


@given(SEEDS)
def test_an_image_of_both_the_training_and_the_official_test_set_is_used_once(seed):
    dataset = dataset_of([10, 10], official=4)
    images = np.concatenate([dataset.images, dataset.images])
    labels = np.concatenate([dataset.labels, dataset.labels])
    is_test = np.concatenate([dataset.is_test, np.ones_like(dataset.is_test)])
    doubled = Dataset("generated", images, labels, is_test, 2)
    chosen = members(split_dataset(doubled, private=6, auxiliary=6, test=8, seed=seed), doubled)
    assert len(set().union(*chosen.values())) == 20


@given(SEEDS, st.integers(2, 5), st.tuples(*[st.integers(1, 60)] * 3))
def test_each_class_has_its_share_of_each_split_to_one_image(seed, classes, fifths):
    dataset = dataset_of([40] * classes)
    sizes = [max(classes, size * classes // 5) for size in fifths]
    splits = split_dataset(dataset, **dict(zip(NAMES, sizes, strict=True)), seed=seed)
    for name, size in zip(NAMES, sizes, strict=True):
        found = Counter(getattr(splits, f"{name}_labels").tolist())
        assert all(abs(found[label] - size / classes) < 1 for label in range(classes))


@given(SEEDS, st.tuples(*[st.integers(25, 90)] * 3))
def test_each_class_has_nearly_its_share_where_classes_differ_in_size(seed, counts):
    total = sum(counts)
    splits = split_dataset(dataset_of(counts), private=24, auxiliary=24, test=24, seed=seed)
    for name in NAMES:
        found = Counter(getattr(splits, f"{name}_labels").tolist())
        for label, count in enumerate(counts):
            # One image for the class's own place, and its share of one for each other class's.
            assert abs(found[label] - 24 * count / total) <= 1 + len(counts) * count / total


def test_a_seed_decides_the_splits():
    dataset = dataset_of([30, 30])
    one, again, other = (
        split_dataset(dataset, private=20, auxiliary=20, test=20, seed=seed) for seed in (1, 1, 2)
    )
    assert members(one, dataset) == members(again, dataset)
    for name in NAMES:
        shared = set(members(one, dataset)[name]) & set(members(other, dataset)[name])
        assert len(shared) < 15


@looped(
    ("shape", "canvas", "before"),
    [((28, 28), (32, 32), (2, 2)), ((16, 33), (16, 48), (0, 7)), ((5, 31), (16, 32), (5, 0))],
)
def test_images_stand_in_the_middle_of_a_black_canvas_and_keep_their_values(shape, canvas, before):
    generator = np.random.default_rng(0)
    pixels = generator.integers(1, 256, (30, *shape), dtype=np.uint8)
    dataset = Dataset("generated", pixels, np.arange(30) % 2, None, 2)
    splits = split_dataset(dataset, private=10, auxiliary=10, test=10, seed=0)
    stored = {image.tobytes(): image for image in pixels}
    for name in NAMES:
        images = getattr(splits, f"{name}_images")
        assert images.shape == (10, 1, *canvas)
        assert images.dtype == torch.float32
        for padded, key in zip(images[:, 0].numpy(), members(splits, dataset)[name], strict=True):
            expected = np.zeros(canvas, np.float32)
            inner = stored[key].astype(np.float32) / np.float32(255)
            expected[
                before[0] : before[0] + shape[0],
                before[1] : before[1] + shape[1],
            ] = inner
            np.testing.assert_array_equal(padded, expected)


@looped(
    ("sizes", "official", "text"),
    [
        (
            (10, 10, 5),
            0,
            r"has 5 distinct images for test and 19 for other splits, but 5 and 10 \+ 10",
        ),
        ((5, 5, 7), 3, r"has 6 distinct images for test and 18 for other splits, but 7 and 5 \+ 5"),
        (
            (10, 9, 6),
            3,
            r"has 6 distinct images for test and 18 for other splits, but 6 and 10 \+ 9",
        ),
    ],
)
def test_more_images_than_there_are_is_refused_with_the_counts(sizes, official, text):
    dataset = dataset_of([12, 12], copies=2, official=official)
    with pytest.raises(InvalidOptionError, match=text):
        split_dataset(dataset, **dict(zip(NAMES, sizes, strict=True)), seed=0)


@looped(
    ("sizes", "text"),
    [
        ((0, 5, 5), "private must be a whole number of at least 1, but got 0"),
        ((5, -1, 5), "auxiliary must be a whole number of at least 1, but got -1"),
        ((5, 5, 0), "test must be a whole number of at least 1, but got 0"),
        ((0.0, 5, 5), "private must be a number of images, or a share .* up to 1, but got 0.0"),
        ((5, 1.5, 5), "auxiliary must be a number of images, or a share .* but got 1.5"),
        ((5, 5, 0.01), "test would have no image: it is 0.01 of 24"),
    ],
)
def test_an_empty_split_is_refused(sizes, text):
    with pytest.raises(InvalidOptionError, match=text):
        split_dataset(dataset_of([12, 12]), **dict(zip(NAMES, sizes, strict=True)), seed=0)


@looped("official", [0, 4])
def test_a_share_is_that_number_of_the_distinct_images_there_are(official):
    dataset, other = dataset_of([15, 15, 15], copies=2, official=official), other_dataset(20)
    pools = (12, 33) if official else (45, 45)
    shares = split_dataset(
        dataset, private=0.6, auxiliary=1.0, test=0.25, seed=3, auxiliary_dataset=other
    )
    counts = split_dataset(
        dataset,
        private=int(0.6 * pools[1]),
        auxiliary=20,
        test=int(0.25 * pools[0]),
        seed=3,
        auxiliary_dataset=other,
    )
    for name in NAMES:
        one, same = (getattr(splits, f"{name}_images") for splits in (shares, counts))
        assert torch.equal(one, same)


@looped("name", NAMES)
def test_a_split_without_some_class_is_refused_by_name(name):
    sizes = dict.fromkeys(NAMES, 6) | {name: 2}
    with pytest.raises(InvalidOptionError, match=f"the {name} split of 2 .*none of 1 of the 3"):
        split_dataset(dataset_of([12, 12, 12]), **sizes, seed=0)


def test_images_with_a_channel_axis_are_refused():
    pixels = np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4, 1)
    dataset = Dataset("generated", pixels, np.zeros(9, np.int64), None, 1)
    with pytest.raises(CorruptDataError, match=r"shape \(N, H, W\), but got \(3, 4, 4, 1\)"):
        split_dataset(dataset, private=3, auxiliary=3, test=3, seed=0)


def other_dataset(count, *, copies=1, side=5, seed=1):
    """Images of classes of their own, none of which is in ``dataset_of`` with its own seed."""
    return dataset_of([count - 7, 1, 1, 5], copies=copies, side=side, seed=seed)


@given(SEEDS, st.integers(1, 3), st.booleans(), st.integers(1, 20))
def test_auxiliary_images_are_distinct_ones_of_their_own_data_set(seed, copies, official, count):
    dataset = dataset_of([9, 9, 9], official=3 if official else 0)
    other = other_dataset(20, copies=copies)
    splits = split_dataset(
        dataset, private=9, auxiliary=count, test=9, seed=seed, auxiliary_dataset=other
    )
    chosen = members(splits, dataset)
    assert len(set(chosen["auxiliary"])) == len(chosen["auxiliary"]) == count
    label_of = {i.tobytes(): label for i, label in zip(other.images, other.labels, strict=True)}
    expected = [label_of[image] for image in chosen["auxiliary"]]
    assert splits.auxiliary_labels.tolist() == expected
    assert set(chosen["private"] + chosen["test"]) <= {i.tobytes() for i in dataset.images}
    assert splits.num_classes == 3


@given(SEEDS, st.booleans())
def test_private_and_test_images_do_not_depend_on_another_auxiliary_set(seed, official):
    dataset = dataset_of([12, 12], official=5 if official else 0)
    sizes = {"private": 6, "test": 6, "seed": seed}
    own = split_dataset(dataset, auxiliary=2, **sizes)
    other = split_dataset(dataset, auxiliary=9, auxiliary_dataset=other_dataset(9), **sizes)
    for name in ("private", "test"):
        for kind in ("images", "labels"):
            assert torch.equal(*(getattr(s, f"{name}_{kind}") for s in (own, other)))


def test_all_of_the_data_set_may_be_private_or_test_beside_another_auxiliary_set():
    dataset = dataset_of([6, 6])
    splits = split_dataset(
        dataset, private=8, auxiliary=9, test=4, seed=0, auxiliary_dataset=other_dataset(9)
    )
    assert [len(images) for images in members(splits, dataset).values()] == [8, 9, 4]


def test_the_draw_from_another_auxiliary_set_shares_no_stream_with_the_splits():
    """Of one class, splits are the data set in the very order in which it was permuted."""
    dataset, other = dataset_of([40]), dataset_of([40], seed=1)
    for seed in range(5):
        splits = split_dataset(
            dataset, private=30, auxiliary=40, test=10, seed=seed, auxiliary_dataset=other
        )
        place = {image.tobytes(): row for row, image in enumerate(dataset.images)}
        chosen = members(splits, dataset)
        order = [place[image] for image in chosen["test"] + chosen["private"]]
        place = {image.tobytes(): row for row, image in enumerate(other.images)}
        drawn = [place[image] for image in chosen["auxiliary"]]
        assert sorted(drawn) == sorted(order) == list(range(40))
        same = sum(ours == theirs for ours, theirs in zip(order, drawn, strict=True))
        assert same < 10, seed  # independent permutations agree in one place on average


def test_a_seed_decides_the_draw_from_another_auxiliary_set():
    dataset, other = dataset_of([9, 9]), other_dataset(60)
    one, again, second = (
        members(
            split_dataset(
                dataset, private=6, auxiliary=20, test=6, seed=seed, auxiliary_dataset=other
            ),
            dataset,
        )["auxiliary"]
        for seed in (1, 1, 2)
    )
    assert one == again
    assert len(set(one) & set(second)) < 15
    in_order = [image.tobytes() for image in other.images]
    assert one != sorted(one, key=in_order.index)


@looped("official", [0, 5])
@looped("split", ["private", "test"])
def test_an_auxiliary_image_that_is_private_or_test_is_refused(split, official):
    dataset, sizes = dataset_of([12, 12], official=official), {"private": 6, "test": 6, "seed": 0}
    plain = split_dataset(dataset, auxiliary=2, **sizes)
    shared = np.frombuffer(members(plain, dataset)[split][2], np.uint8).reshape(1, 5, 7)
    other = other_dataset(8)
    spoiled = Dataset(
        "spoiled", np.concatenate([other.images, shared]), np.append(other.labels, 0), None, 4
    )
    with pytest.raises(OverlappingSplitsError, match="share 1 images") as caught:
        split_dataset(dataset, auxiliary=9, auxiliary_dataset=spoiled, **sizes)
    assert split in str(caught.value)
    assert "auxiliary" in str(caught.value)


def test_an_overlap_is_seen_through_padding_and_before_a_missing_class():
    dataset = dataset_of([6, 6, 6], side=5)
    padded = np.pad(dataset.images, [(0, 0), (5, 6), (4, 5)])
    other = Dataset("padded", padded, dataset.labels, None, 3)
    with pytest.raises(OverlappingSplitsError, match="test and auxiliary splits share 6"):
        split_dataset(dataset, private=2, auxiliary=18, test=6, seed=0, auxiliary_dataset=other)


def test_auxiliary_images_that_are_not_drawn_may_be_private():
    dataset, sizes = dataset_of([6, 6]), {"private": 6, "test": 6, "seed": 0}
    other = Dataset("same", dataset.images[:6], dataset.labels[:6], None, 2)
    mixed = Dataset(
        "mixed",
        np.concatenate([other.images, other_dataset(9).images]),
        np.zeros(15, np.int64),
        None,
        1,
    )
    drawn = {"clean": 0, "refused": 0}
    for seed in range(40):
        try:
            split_dataset(dataset, auxiliary=1, auxiliary_dataset=mixed, **sizes | {"seed": seed})
        except OverlappingSplitsError:
            drawn["refused"] += 1
        else:
            drawn["clean"] += 1
    assert min(drawn.values()) > 5


def test_another_size_of_auxiliary_images_is_refused_with_the_remedy():
    text = r"size of the private ones, \(16, 16\) .* are \(32, 32\)\. Load both .* same side"
    with pytest.raises(InvalidOptionError, match=text):
        split_dataset(
            dataset_of([9, 9]),
            private=6,
            auxiliary=6,
            test=6,
            seed=0,
            auxiliary_dataset=other_dataset(9, side=20),
        )


@looped(
    ("sizes", "text"),
    [
        ((6, 10, 6), "auxiliary data set 'generated' has 9 distinct images, but 10 are needed"),
        (
            (13, 9, 6),
            "has 6 distinct images for test and 12 for other splits, but 6 and 13 are needed",
        ),
        ((1, 9, 6), "private split of 1 images would have none of 1 of the 2 classes"),
        ((6, 0, 6), "auxiliary must be a whole number of at least 1, but got 0"),
    ],
)
def test_sizes_that_another_auxiliary_set_does_not_allow_are_refused(sizes, text):
    with pytest.raises(InvalidOptionError, match=text):
        split_dataset(
            dataset_of([9, 9]),
            **dict(zip(NAMES, sizes, strict=True)),
            seed=0,
            auxiliary_dataset=other_dataset(9, copies=2),
        )


def test_moving_splits_moves_every_tensor():
    splits = split_dataset(dataset_of([9, 9]), private=6, auxiliary=6, test=6, seed=0)
    moved = splits.to(torch.device("meta"))
    for name in NAMES:
        for kind in ("images", "labels"):
            before, after = (getattr(side, f"{name}_{kind}") for side in (splits, moved))
            assert after.device.type == "meta"
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert moved.num_classes == 2


def test_overlapping_splits_are_refused_with_both_names_and_the_count():
    images = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    splits = {"private": images[:4], "auxiliary": images[4:8], "test": images[[8, 5, 4, 4]]}
    with pytest.raises(OverlappingSplitsError, match="auxiliary and test splits share 2 images"):
        check_disjoint(splits)
    records = {name: rows.flatten(1) for name, rows in splits.items()}
    with pytest.raises(OverlappingSplitsError, match="auxiliary and test splits share 2 records"):
        check_disjoint(records)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_overlaps_are_found_whatever_the_floating_type_and_the_sign_of_zero(dtype):
    # Values that all of these types have.
    images = (torch.arange(32) / 32).view(8, 1, 2, 2)
    copies = images[2:4].to(dtype)
    with pytest.raises(OverlappingSplitsError, match="auxiliary and test splits share 2 images"):
        check_disjoint({"auxiliary": images, "test": copies})
    dark = torch.zeros(1, 4)
    with pytest.raises(OverlappingSplitsError, match="share 1 records"):
        check_disjoint({"auxiliary": dark, "test": -dark})
    check_disjoint({"auxiliary": images[:2], "test": copies})


def test_splits_that_repeat_an_image_only_within_themselves_are_accepted():
    images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    check_disjoint({"private": images[[0, 0, 1]], "test": images[[2, 3, 2]]})


def test_hashes_are_of_each_image_whatever_its_place_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
    expected = [hashlib.sha256(bytes(image.ravel().tolist())).hexdigest() for image in pixels]
    assert image_hashes(pixels).tolist() == expected
    assert image_hashes(pixels[::-1]).tolist() == expected[::-1]
    assert image_hashes(np.asfortranarray(pixels)).tolist() == expected


# Queries that the operator has kept.


def calibration_of(splits, dataset):
    return stored_bytes(splits.calibration_images, dataset)


@given(SEEDS, st.integers(1, 8), st.booleans())
def test_what_is_kept_for_calibration_changes_no_other_split(seed, count, with_official):
    dataset = dataset_of([12, 12, 12], official=4 if with_official else 0)
    sizes = {"private": 8, "auxiliary": 8, "test": 8, "seed": seed}
    none, some = (split_dataset(dataset, calibration=kept, **sizes) for kept in (0, count))
    for name in NAMES:
        for kind in ("images", "labels"):
            one, other = (getattr(splits, f"{name}_{kind}") for splits in (none, some))
            assert torch.equal(one, other)
    assert none.calibration_images.shape == (0, *some.private_images.shape[1:])
    assert some.calibration_images.dtype == torch.float32
    kept = calibration_of(some, dataset)
    assert len(kept) == len(set(kept)) == count
    assert not set(kept) & set().union(*members(some, dataset).values())
    # And they are no official test images.
    if with_official:
        official = {image.tobytes() for image in dataset.images[dataset.is_test]}
        assert not set(kept) & official


@given(SEEDS, st.integers(3, 60))
def test_each_class_has_its_share_of_what_is_kept(seed, count):
    dataset = dataset_of([40] * 3)
    label_of = {
        image.tobytes(): label for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    splits = split_dataset(dataset, private=21, auxiliary=18, test=21, seed=seed, calibration=count)
    found = Counter(label_of[image] for image in calibration_of(splits, dataset))
    assert all(abs(found[label] - count / 3) < 1 for label in range(3))


def test_what_is_kept_comes_from_the_private_set_s_source():
    dataset, other = dataset_of([12, 12]), other_dataset(9)
    splits = split_dataset(
        dataset, private=6, auxiliary=9, test=6, seed=0, auxiliary_dataset=other, calibration=12
    )
    own = {image.tobytes() for image in dataset.images}
    kept = set(calibration_of(splits, dataset))
    assert len(kept) == 12
    assert kept <= own
    moved = splits.to(torch.device("meta"))
    assert moved.calibration_images.device.type == "meta"
    # And may not be what attackers have.
    whole = np.concatenate([other.images, dataset.images])
    spoiled = Dataset("spoiled", whole, np.zeros(len(whole), np.int64), None, 1)
    with pytest.raises(OverlappingSplitsError):
        split_dataset(
            dataset,
            private=6,
            auxiliary=len(whole),
            test=6,
            seed=0,
            auxiliary_dataset=spoiled,
            calibration=12,
        )
    rest = {
        image
        for image in own
        if image
        not in set().union(
            set(members(splits, dataset)["private"]), set(members(splits, dataset)["test"])
        )
    }
    only = [image for image in dataset.images if image.tobytes() in rest]
    shared = Dataset("shared", np.stack(only), np.zeros(12, np.int64), None, 1)
    with pytest.raises(OverlappingSplitsError, match="auxiliary and calibration splits share 12"):
        split_dataset(
            dataset,
            private=6,
            auxiliary=12,
            test=6,
            seed=0,
            auxiliary_dataset=shared,
            calibration=12,
        )


@looped(
    ("count", "text"),
    [
        (
            13,
            r"for test and 24 for other splits, but 6 and 6 \+ 6 \+ 13 are needed",
        ),
        (-1, "calibration must be a whole number of at least 0, but got -1"),
    ],
)
def test_more_than_there_are_cannot_be_kept(count, text):
    dataset = dataset_of([15, 15])
    with pytest.raises(InvalidOptionError, match=text):
        split_dataset(dataset, private=6, auxiliary=6, test=6, seed=0, calibration=count)

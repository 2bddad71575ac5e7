"""Versions of a codebook: tables that nest, what answers of several reveal, and their names."""

import copy
import json
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.adapters import Guard
from oneway.defenses import KeyedRandomness, SecretKey, build_defense
from oneway.defenses.codebook import (
    Certificate,
    Codebook,
    CodebookRelease,
    FitSettings,
    JointCodebook,
    certify,
    certify_together,
    chance_named,
    cut_calibration,
    fit_codebook,
    merge_calibration,
)
from oneway.defenses.guard_versions import guard_version
from oneway.errors import CorruptDataError, InvalidOptionError, InvalidTensorError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


OLD, NEW = scored(1, 400)[0], scored(2, 900)[0]
ASKED = torch.cat([scored(3, 3000)[0], OLD, NEW, scored(4, 500, scale=0.3)[0]])
"""Queries near and far from those that fitted, and these themselves."""

TABLES = {
    explicit: fit_codebook(OLD, FitSettings(min_members=9, explicit_classes=explicit))
    for explicit in (4, 2)
}


def refined(older, logits, groups=None, **options):
    how = FitSettings(**{"min_members": 5, "max_boxes": 5, **options})
    return merge_calibration(
        cut_calibration(logits, how, groups=groups, older=older), how.rate_weight
    )


def parents_of(older, newer, logits):
    """Return the older cells that the rows of each newer cell have."""
    parents = defaultdict(set)
    for new, old in zip(newer(logits).tolist(), older(logits).tolist(), strict=True):
        parents[new].add(old)
    return parents


@settings(max_examples=8)
@given(
    st.sampled_from([4, 2]),
    st.integers(0, 900),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.01, 0.1, 1e9]),
    st.sampled_from([0, 30, 150]),
    st.sampled_from(["mean", "median"]),
)
def test_the_older_cell_follows_from_the_newer_one(
    explicit, first, members, weight, people, center
):
    older = TABLES[explicit]
    rows = NEW[first:] if len(NEW) - first >= members else NEW
    groups = None if not people else torch.arange(len(rows)) % people
    options = {"min_members": members, "rate_weight": weight, "center": center}
    if groups is None:
        newer = refined(older, rows, **options)
    else:  # nobody knows how many people are behind the older vectors
        try:
            newer = refined(older, rows, groups, **options)
        except InvalidOptionError as error:
            assert "stands for 0" in str(error)  # noqa: PT017
            return
    assert newer.fault() is None
    parents = parents_of(older, newer, ASKED)
    assert all(len(old) == 1 for old in parents.values())
    if weight == 1e9:  # no distortion is worth a bit
        assert newer.sizes.cells == older.sizes.cells
    # Each vector is that of enough new queries, or one that has been released before.
    cells = newer(rows)
    for cell in range(newer.sizes.cells):
        inside = rows[cells == cell]
        if len(inside) >= members and newer.members[cell] == len(inside):
            vector = newer.expand(newer.values, torch.tensor([cell]))[0]
            mean = inside.double().softmax(-1).mean(0)
            if center == "mean" and explicit == 4:
                assert torch.allclose(vector, mean, atol=1e-3)  # few digits are kept
        else:
            (old,) = parents[cell] or {None}
            assert newer.members[cell] == older.members[old]
            assert torch.equal(newer.values[cell], older.values[old])


def test_no_older_cell_is_lost_and_more_queries_cut_further():
    older = TABLES[4]
    few, many = refined(older, NEW[:60], min_members=9), refined(older, NEW, min_members=5)
    assert few.sizes.cells == older.sizes.cells < many.sizes.cells
    parents = parents_of(older, many, ASKED)
    assert set.union(*parents.values()) == set(range(older.sizes.cells))
    # Refined once more, the first one's cells still follow.
    last = refined(many, scored(9, 1500)[0], min_members=5)
    assert all(len(old) == 1 for old in parents_of(older, last, ASKED).values())


def test_a_vector_that_must_stay_and_breaks_the_promise_is_refused():
    with pytest.raises(InvalidOptionError, match="must stand for 30 queries or more"):
        refined(TABLES[4], NEW[:60], min_members=30)
    people = torch.arange(60) % 20
    with pytest.raises(InvalidOptionError, match=r"must stand for 5 groups or more, .* for 0"):
        refined(TABLES[4], NEW[:60], people)
    with pytest.raises(InvalidTensorError, match="over the 5 classes"):
        refined(TABLES[4], scored(1, 400, classes=5)[0])
    with pytest.raises(InvalidOptionError, match="max_cells must be at least"):
        refined(TABLES[4], NEW, max_cells=TABLES[4].sizes.cells - 1)
    capped = refined(TABLES[4], NEW, max_cells=TABLES[4].sizes.cells + 2)
    assert capped.sizes.cells <= TABLES[4].sizes.cells + 2


def test_a_person_who_fills_a_new_cell_does_not_make_its_vector():
    older = fit_codebook(OLD, FitSettings(min_members=9, rate_weight=1e9))
    grouped = cut_calibration(OLD, FitSettings(min_members=9), groups=torch.arange(400) % 100)
    older = merge_calibration(grouped, 1e9)
    crowd = NEW.argmax(-1) == 0
    people = torch.where(crowd, torch.where(torch.arange(900) % 10 == 0, torch.arange(900), 0), 1)
    people = torch.where(crowd, people, torch.arange(900))
    newer = refined(older, NEW, people, max_group_share=0.5)
    assert torch.equal(newer.values[0], older.values[0])
    assert newer.members[0] == older.members[0]
    assert newer.sizes.cells > older.sizes.cells


def test_cells_of_both_are_pairs_and_none_that_occurs_is_left_out():
    for explicit, members in ((4, 9), (4, 40), (2, 15)):
        how = FitSettings(min_members=members, explicit_classes=explicit)
        tables = [TABLES[explicit], fit_codebook(NEW, how), TABLES[4]]
        joint = JointCodebook(tables[:2])
        pairs = torch.stack([table(ASKED) for table in tables[:2]], -1)
        assert torch.equal(joint.parts[joint(ASKED)], pairs)
        seen = len(pairs.unique(dim=0))
        labels = [Counter(table.labels.tolist()) for table in tables[:2]]
        most = sum(labels[0][label] * labels[1][label] for label in range(4))
        assert seen <= joint.sizes.cells <= most - (explicit == 4)
        assert joint.sizes.cells == JointCodebook(tables[1::-1]).sizes.cells
        three = JointCodebook(tables)
        triples = torch.stack([table(ASKED) for table in tables], -1)
        assert torch.equal(three.parts[three(ASKED)], triples)
        nested = refined(tables[1], OLD)
        assert JointCodebook([tables[1], nested]).sizes.cells == nested.sizes.cells


def test_what_cannot_be_is_not_counted():
    """Of 130 pairs of boxes of two trees few hold a query, and nearly all that are left do."""
    tables = [TABLES[4], fit_codebook(NEW, FitSettings(min_members=9))]
    joint = JointCodebook(tables)
    seen = len(joint(scored(5, 60_000)[0]).unique())
    assert seen <= joint.sizes.cells <= 1.1 * seen


def test_a_certificate_of_two_is_that_of_a_table_with_their_pairs():
    logits, images = scored(6, 300)
    tables = [TABLES[4], fit_codebook(NEW, FitSettings(min_members=9))]
    told, joint = certify_together(tables, logits, images)
    pairs = list(zip(*(table(logits).tolist() for table in tables), strict=True))
    counts = Counter(pairs)
    flat = images.flatten(1)
    within = 0.0
    for pair, count in counts.items():
        rows = flat[[number for number, each in enumerate(pairs) if each == pair]]
        within += 0.0 if count == 1 else float(rows.var(0, correction=1).mean()) * count
    assert told.error.estimate == pytest.approx(within / 300)
    assert told.together.named == pytest.approx(len(counts) / 300)
    assert told.identification.cells == joint.sizes.cells >= len(counts)
    assert told.members_least == min(counts.values())
    alone = [certify(table, logits, images) for table in tables]
    for table, one, each in zip(tables, alone, told.together.alone, strict=True):
        assert (each.version, each.cells) == (table.version, table.sizes.cells)
        assert each.error == one.error.estimate
        assert each.bits_measured == one.bits_measured < told.bits_measured
        assert each.named == chance_named(table(logits)) < told.together.named
    assert told.error.estimate < min(one.error.estimate for one in alone)
    assert (told.table, told.version, told.labels_alone) == ("", "", 0)
    assert Certificate.from_json(json.loads(json.dumps(told.as_json()))) == told
    assert "several versions" in told.fault(joint) or told.fault(joint)
    copies = torch.arange(400) % 300
    dropped, _ = certify_together(tables, logits[copies], images[copies], drop_copies=True)
    assert dropped.together == told.together


def test_beside_a_finer_nested_version_the_older_one_reveals_nothing():
    logits, images = scored(6, 300)
    newer = refined(TABLES[4], NEW)
    both, alone = (
        certify_together([newer, TABLES[4]], logits, images)[0],
        certify(newer, logits, images),
    )
    for name in ("error", "bits_measured", "bits_most", "identification", "error_by_label"):
        assert getattr(both, name) == getattr(alone, name), name


def test_tables_of_other_models_and_single_ones_are_refused():
    with pytest.raises(InvalidOptionError, match="two tables or more, but got 1"):
        JointCodebook([TABLES[4]])
    other = fit_codebook(scored(1, 400, classes=5)[0], FitSettings(min_members=9))
    with pytest.raises(InvalidTensorError, match=r"are over \[4, 5\]"):
        JointCodebook([TABLES[4], other])


def reordered(book):
    """Return a table that answers the same: cells are numbered otherwise, and boxes are spare."""
    sizes = {**book.architecture, "boxes": book.sizes.boxes + 2}
    other, back = Codebook(**sizes), torch.arange(book.sizes.cells).flip(0)
    other.classes = book.classes.clone()
    other.edges[:] = -torch.inf
    other.edges[:, : book.sizes.boxes] = book.edges
    other.assignment = torch.cat([book.assignment, book.assignment[:, :2]], 1)
    other.assignment = back[other.assignment]
    for name in ("values", "offsets", "labels"):
        setattr(other, name, getattr(book, name)[back])
    return other


def test_versions_name_answers_and_nothing_else(tmp_path):
    book = TABLES[4]
    guard = CodebookRelease(book)
    assert guard_version(guard) == book.version == guard_version(guard)
    same = reordered(book)
    assert torch.equal(guard(ASKED), CodebookRelease(same)(ASKED))
    assert same.version == book.version
    same.members += 7
    assert same.version == book.version
    assert same.digest() != book.digest()
    # Neither the certificate nor what it was made of is in it.
    fitted = CodebookRelease.fit(OLD, generator=seeded(), settings=FitSettings(min_members=9))
    fitted.save(tmp_path / "guard.safetensors")
    loaded = CodebookRelease.load(tmp_path / "guard.safetensors")
    assert loaded.certificate.version == loaded.state.version == fitted.state.version
    fitted.certificate = None
    assert guard_version(fitted) == guard_version(loaded)
    for name in ("classes", "edges", "assignment", "values", "offsets"):
        changed = copy.deepcopy(book)
        tensor = getattr(changed, name)
        if name == "classes":
            tensor[0, 1:] = tensor[0, 1:].flip(0)
        elif name == "assignment":
            tensor[0, 0] = tensor[0, 1]
        else:
            tensor.view(-1)[0] = tensor.view(-1)[0].nextafter(torch.tensor(-1.0).double())
        assert changed.version != book.version, name


def test_a_certificate_of_another_version_is_refused(tmp_path):
    fitted = CodebookRelease.fit(OLD, generator=seeded(), settings=FitSettings(min_members=9))
    path = tmp_path / "guard.safetensors"
    fitted.save(path)
    path.write_bytes(path.read_bytes().replace(fitted.state.version.encode(), b"0" * 16))
    with pytest.raises(CorruptDataError, match="its version is not that of the table"):
        CodebookRelease.load(path)


def test_options_networks_keys_and_decimals_make_versions():
    key, other = (SecretKey(letter * 16) for letter in (b"a", b"b"))

    def noise(draws, key, scale=1.0):
        def build(generator):
            return build_defense(
                "gaussian-noise",
                {"keep_label": True, "standard_deviation": scale},
                generator=generator,
            )

        return KeyedRandomness(build, key, bind=draws)

    guards = [
        build_defense("rounding", {"decimals": 1}),
        build_defense("rounding", {"decimals": 2}),
        build_defense("label-only", {}),
        noise("scores", key),
        noise("input", key),
        noise("scores", other),
        noise("scores", key, 2.0),
        CodebookRelease(TABLES[4]),
        CodebookRelease(TABLES[2]),
    ]
    versions = [guard_version(guard, decimals=some) for guard in guards for some in (None, 1, 2)]
    assert len(set(versions)) == len(versions)
    assert all(len(version) == 16 for version in versions)
    again = [
        guard_version(noise("scores", SecretKey(b"a" * 16)), decimals=some) for some in (None, 1)
    ]
    assert again == versions[9:11]
    with pytest.raises(InvalidOptionError, match="declares no options"):
        guard_version(lambda logits, _: logits)


def test_an_adapter_takes_the_required_version_alone():
    guard = Guard(CodebookRelease(TABLES[4]), "logits")
    assert guard.version == TABLES[4].version
    Guard(CodebookRelease(TABLES[4]), "logits", require_version=guard.version)
    with pytest.raises(InvalidOptionError, match=f"must be of version {guard.version}"):
        Guard(CodebookRelease(TABLES[4]), "logits", decimals=2, require_version=guard.version)

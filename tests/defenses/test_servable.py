"""What may stand before clients, and what is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laws import looped
from oneway.defenses import (
    DEFENSES,
    TEST_SIGNALS,
    KeyedRandomness,
    needs_state,
    open_guard,
    open_guard_file,
    save_module,
)
from oneway.defenses.codebook import CodebookRelease, FitSettings
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
    OnewayError,
    UnknownNameError,
)
from oneway.inversion import Inverter

CPU = torch.device("cpu")
KEY = b"0123456789abcdef"


def test_a_named_defense_is_opened_with_its_options():
    guard = open_guard("rounding", {"decimals": 1}, device=CPU)
    assert (guard.name, guard.defense.decimals) == ("rounding", 1)
    assert guard.version


@looped("name", TEST_SIGNALS)
def test_controls_are_refused_whatever_their_options(name):
    with pytest.raises(InvalidOptionError, match="leaks on purpose"):
        open_guard(name, {}, device=CPU, allow_clean_scores=True)


@looped("name", ["oneway.defenses.identity:Identity", "os:system", "roundin"])
def test_a_class_by_its_module_is_no_registered_defense(name):
    with pytest.raises(UnknownNameError, match="unknown defense"):
        open_guard(name, {}, device=CPU)


def test_no_defense_is_refused_unless_allowed():
    with pytest.raises(InvalidOptionError, match="guards nothing"):
        open_guard("none", {}, device=CPU)
    assert open_guard("none", {}, device=CPU, allow_clean_scores=True).name == "none"


@looped("name", ["gaussian-noise", "dirichlet-noise"])
def test_a_random_defense_needs_a_key_and_is_deterministic_with_it(name):
    with pytest.raises(InvalidOptionError, match="key"):
        open_guard(name, {"keep_label": True}, device=CPU)
    guard = open_guard(name, {"keep_label": True}, key=KEY, device=CPU)
    assert isinstance(guard.defense, KeyedRandomness)
    logits, images = torch.randn(4, 3), torch.rand(4, 2)
    assert torch.equal(guard.defense(logits, images), guard.defense(logits, images))
    # What changes scores invisibly has the same draws: else whoever sends a thousand such changes
    # averages them. Scores of steps of a quarter of a nat lie in the middle of the grid's cells.
    middle = torch.tensor([[0.0, 0.0]])
    first = guard.defense(middle, images[:1])
    assert torch.equal(guard.defense(middle, images[:1] + 1e-3), first)
    moved = guard.defense(middle + torch.tensor([[1e-3, 0.0]]), images[:1])
    assert torch.allclose(moved.softmax(1), first.softmax(1), atol=1e-3)


def test_a_defense_that_may_flip_labels_is_refused():
    with pytest.raises(InvalidOptionError, match="keep_label=true"):
        open_guard("gaussian-noise", {}, key=KEY, device=CPU)


@looped("name", sorted(DEFENSES))
def test_whatever_opens_keeps_labels_and_is_deterministic(name, tmp_path):
    path = tmp_path / "inverter.safetensors"
    save_module(path, Inverter(3, (1, 32, 32), hidden_layers=1), "inverter", {})
    for options in ({}, {"keep_label": True}, {"step_size": 0.1}):
        for inverter in (None, path):
            try:
                guard = open_guard(
                    name, options, inverter=inverter, key=KEY, device=CPU, allow_clean_scores=True
                )
            except OnewayError:
                continue
            assert guard.defense.keeps_label
            assert guard.defense.deterministic


def test_files_are_asked_for_where_they_are_needed_and_nowhere_else(tmp_path):
    with pytest.raises(InvalidOptionError, match="needs --inverter FILE"):
        open_guard("adversarial-noise", {"step_size": 0.1}, device=CPU)
    with pytest.raises(InvalidOptionError, match="takes no --inverter"):
        open_guard("rounding", {}, inverter=tmp_path / "x", device=CPU)
    trained = next(name for name in DEFENSES if needs_state(name))
    with pytest.raises(InvalidOptionError, match="needs --state FILE"):
        open_guard(trained, {}, device=CPU)


def test_files_that_are_missing_corrupt_or_of_another_kind_are_refused(tmp_path):
    options = {"step_size": 0.1}
    path = tmp_path / "inverter.safetensors"
    with pytest.raises(MissingDataError):
        open_guard("adversarial-noise", options, inverter=path, device=CPU)
    save_module(path, Inverter(3, (1, 32, 32), hidden_layers=1), "inverter", {})
    open_guard("adversarial-noise", options, inverter=path, device=CPU)
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole[:40], whole.replace(b"inverter", b"intruder")):
        path.write_bytes(broken)
        with pytest.raises(CorruptDataError):
            open_guard("adversarial-noise", options, inverter=path, device=CPU)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="rounding"):
        open_guard("ronding", {}, device=CPU)
    with pytest.raises(UnknownNameError, match="decimals"):
        open_guard("rounding", {"decimal": 1}, device=CPU)


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("guard") / "guard.safetensors"
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(400, 3, generator=generator)
    fitted = FitSettings(min_members=10)
    CodebookRelease.fit(logits, generator=generator, settings=fitted).save(path)
    return path


def test_a_codebook_is_opened_from_its_file_and_its_version_is_its_tables(codebook, tmp_path):
    guard = open_guard_file(codebook, device=CPU)
    logits = 4 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(guard.defense(logits), CodebookRelease.load(codebook)(logits))
    other = tmp_path / "other.safetensors"
    generator = torch.Generator().manual_seed(2)
    fitted = FitSettings(min_members=10)
    CodebookRelease.fit(logits.repeat(8, 1), generator=generator, settings=fitted).save(other)
    versions = {open_guard_file(path, device=CPU).version for path in (codebook, codebook, other)}
    assert (guard.name, len(versions)) == ("codebook", 2)
    with pytest.raises(InvalidOptionError, match="--guard FILE"):
        open_guard("codebook", {}, device=CPU)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1))
def test_whatever_bits_flip_a_codebook_is_refused_or_releases_the_same(
    codebook, tmp_path, label_changes
):
    logits = 4 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    damaged = bytearray(codebook.read_bytes())
    for share, bit in label_changes:
        damaged[int(share * len(damaged))] ^= 1 << bit
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(damaged)
    try:
        opened = open_guard_file(path, device=CPU)
    except CorruptDataError:
        return
    assert opened.defense.certificate is not None
    assert torch.equal(
        opened.defense(logits), open_guard_file(codebook, device=CPU).defense(logits)
    )


def test_a_codebook_that_is_missing_or_damaged_is_refused(codebook, tmp_path):
    with pytest.raises(MissingDataError):
        open_guard_file(tmp_path / "no", device=CPU)
    with pytest.raises(MissingDataError, match=r"by --defense label-only .*build_defense"):
        open_guard_file(Path("label-only"), device=CPU)
    whole = codebook.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    flipped = bytearray(whole)
    flipped[-9] ^= 0x40  # in a tensor
    for broken in (b"", whole[:-8], whole.replace(b"codebook", b"codelook"), bytes(flipped)):
        damaged.write_bytes(broken)
        with pytest.raises(CorruptDataError):
            open_guard_file(damaged, device=CPU)

"""Tensors on disk: what comes back is what went in, and nothing else is taken for it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from oneway.errors import CorruptDataError, MissingDataError
from oneway.files import atomic_file, corrupt, read_tensors, write_tensors
from rows import same_bits

REMEDY = "Make one."
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_header_comes_back_whatever_json_it_holds(tmp_path_factory, header):
    path = tmp_path_factory.mktemp("files") / "file"
    write_tensors(path, {"a": torch.zeros(1)}, header)
    assert read_tensors(path, "thing", REMEDY)[1] == header


def test_tensors_come_back_bit_for_bit_in_their_types_and_shapes(tmp_path):
    special = torch.tensor([math.nan, -0.0, math.inf, 5e-324], dtype=torch.float64)
    tensors = {
        "doubles": special,
        "halves": torch.tensor([[1.5, -0.0]], dtype=torch.float16),
        "brains": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
        "turned": torch.arange(6, dtype=torch.float32).view(2, 3).T,
        "with a gradient": torch.ones(3, requires_grad=True),
    }
    whole = {"counts": torch.tensor([2**62, -1]), "none": torch.zeros(0, 3), "one": torch.tensor(3)}
    write_tensors(tmp_path / "deep" / "er" / "file", tensors | whole, {})
    found, header = read_tensors(tmp_path / "deep" / "er" / "file", "thing", REMEDY)
    assert header == {}
    assert found.keys() == tensors.keys() | whole.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert same_bits(found[name], tensor.detach().contiguous())
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
    assert tensors["turned"].stride() == (1, 3)


def test_the_same_content_is_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        write_tensors(tmp_path / name, {"a": torch.ones(2), "b": torch.zeros(1)}, {"x": 1.5})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_file_that_is_not_there_is_told_with_the_remedy(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(MissingDataError) as caught:
            read_tensors(path, "thing", REMEDY)
        assert str(caught.value) == f"there is no thing file {path}. Make one."


def written(path):
    write_tensors(path, {"a": torch.full((5,), 0.73)}, {"secret": "0.73"})
    return path.read_bytes()


def other_contents(path):
    """Files that are something else, by what they are."""
    whole = written(path)
    yield "empty", b""
    yield "half", whole[: len(whole) // 2]
    yield "one byte short", whole[:-1]
    yield "one byte long", whole + b"\0"
    yield "a pickle", b"\x80\x04K\x01."
    for name, metadata in {
        "no header": None,
        "another's": {"format": "pt"},
        "no JSON": {"oneway": "{secret 0.73"},
        "a list": {"oneway": "[0.73]"},
        "a number": {"oneway": "0.73"},
    }.items():
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        yield name, path.read_bytes()


def test_what_is_something_else_is_refused_and_not_shown(tmp_path):
    path, count = tmp_path / "file", 0
    for name, content in other_contents(tmp_path / "made"):
        path.write_bytes(content)
        with pytest.raises(CorruptDataError) as caught:
            read_tensors(path, "thing", REMEDY)
        text = str(caught.value)
        assert f"{path} is not a thing that oneway wrote" in text, name
        assert text.endswith(f" {REMEDY}")
        assert "elete" not in text  # it may be somebody's own
        assert "0.73" not in text
        count += 1
    assert count == 10


def test_an_error_is_named_and_its_text_is_not_told():
    text = str(corrupt("file", "thing", REMEDY, ValueError("secret")))
    assert "(ValueError)" in text
    assert "secret" not in text


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_writing_that_fails_leaves_no_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise KeyError("planned")

    with pytest.raises(KeyError, match="planned"):
        write()
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["file"]


def test_writing_that_succeeds_takes_the_place_at_once_and_is_readable_by_others(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # else the move would not be atomic
        assert not path.exists()
    assert path.read_text() == "whole"
    assert files_in(tmp_path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644

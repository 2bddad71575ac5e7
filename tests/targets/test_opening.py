"""What is opened is known by its name; what cannot be is refused with what could."""

import pytest
import torch

from laws import looped
from oneway.errors import InvalidOptionError, MissingDataError, UnknownNameError
from oneway.targets import open_target
from oneway.targets.opening import FILES

CPU = torch.device("cpu")


def opened(where, **options):
    return open_target(str(where), outputs="confidences", device=CPU, **options)


@looped("suffix", [*FILES, ".ONNX"])
def test_a_file_that_is_not_there_or_a_folder_is_said_to_be_so(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    with pytest.raises(MissingDataError, match=r"must be an? .*, but is not there"):
        opened(path)
    path.mkdir()
    with pytest.raises(MissingDataError, match=r"must be an? .*, but is a folder"):
        opened(path)


@looped(
    "where",
    [
        "",
        "model",
        "weights.safetensors",
        "model.h5",
        "models.py",
        "a:b:c",
        "1a:b",
        "a.:b",
        "a:",
        "ftp://host/a",
        "a b:c",
    ],
)
def test_what_could_be_anything_is_refused_with_what_can_be_opened(where):
    with pytest.raises(InvalidOptionError, match=r"cannot tell .*module:factory.*https://.*\.onnx"):
        opened(where)


@looped(
    ("where", "option", "message"),
    [
        ("m.skops", "trust", "unknown option of a skops file 'trust'. Did you mean 'trusted'"),
        ("m.onnx", "output", "unknown option of an ONNX file 'output'. .* 'output_name'"),
        ("https://host/ask", "timeout", "option of an endpoint .*'timeout_seconds'"),
    ],
)
def test_an_option_of_another_name_is_answered_with_the_nearest(
    where, option, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / where.rpartition("/")[2]).touch()
    with pytest.raises(UnknownNameError, match=message):
        opened(where, **{option: 1})


@looped("where", ["m.pt", "m.pt2", "package.module:factory"])
def test_a_kind_without_options_takes_none(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / where.replace(":", "")).touch()
    with pytest.raises(InvalidOptionError, match="takes no options, but got 'output_name'"):
        opened(where, output_name="logits")


def test_an_empty_batch_size_is_refused_before_anything_is_looked_for():
    with pytest.raises(InvalidOptionError, match="batch_size must be a whole number"):
        opened("m.onnx", batch_size=0)

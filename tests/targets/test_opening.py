"""What is opened is known by its name; what cannot be is refused with what could."""

import pytest
import torch

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError, MissingDataError, UnknownNameError
from oneway.targets import class_names_of, open_target
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


def test_class_names_go_to_any_target_or_are_refused(tmp_path, monkeypatch):
    (tmp_path / "named_by_user.py").write_text(
        """
import numpy as np, torch
from oneway.contracts import Target

class Own(Target):
    class_names = ["cat", "dog"]
    def __call__(self, images):
        return torch.full((len(images), 2), 0.5)

class Numbered(Own):
    class_names = ("0", "1")

class Free(Target):
    def __call__(self, images):
        return torch.full((len(images), 2), 0.5)

def network():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.Softmax(-1))

def arrays():
    return lambda rows: np.full((len(rows), 2), 0.5)
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("dog", "cat")
    for kind, outputs in (("network", "confidences"), ("arrays", "confidences"), ("Free", None)):
        where = f"named_by_user:{kind}"
        target = open_target(where, outputs=outputs, device=CPU, class_names=list(names))
        assert class_names_of(target) == names, kind
        assert target(torch.zeros(1, 4)).shape == (1, 2)
        assert class_names_of(open_target(where, outputs=outputs, device=CPU)) is None, kind
    numbered = "named_by_user:Numbered"
    coded = open_target(numbered, outputs=None, device=CPU, class_names=names)
    assert class_names_of(coded) == names
    own = "named_by_user:Own"
    assert class_names_of(open_target(own, outputs=None, device=CPU)) == ("cat", "dog")
    for kind, given, message in (
        ("Own", names, "has the classes cat, dog, in this order, but the names given are dog, cat"),
        ("Numbered", ("a", "b", "c"), "numbers from 0 take as many other names"),
        ("Free", "cat", "must be a sequence of text"),
        ("Free", ("cat", "cat"), "each of them once, .* with cat twice"),
    ):
        with pytest.raises(InvalidOptionError, match=message):
            open_target(f"named_by_user:{kind}", outputs=None, device=CPU, class_names=given)
    target = open_target(
        "named_by_user:arrays", outputs="confidences", device=CPU, class_names=("a", "b", "c")
    )
    with pytest.raises(InvalidTensorError, match="2 scores, but 3 class names"):
        target(torch.zeros(1, 4))

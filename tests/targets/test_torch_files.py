"""TorchScript and exported programs: the network's own answers, and no file that hides a trap."""

import copy
import warnings
import zipfile

import pytest
import torch
from torch import nn

from laws import looped
from oneway.contracts import ScoredTarget
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    InvalidTensorError,
    TargetFailedError,
)
from oneway.releases import release
from oneway.targets import TorchTarget, open_target
from rows import same_bits
from surrogates import random_images

CPU = torch.device("cpu")

IMAGES = random_images(1, 7)

EXAMPLE = random_images(2, 4)

# PyTorch retires TorchScript, and says so at each use; the files remain.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning"
)


def network(*last: nn.Module) -> nn.Sequential:
    """A convolution, BatchNorm with statistics of its own, and dropout, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(72, 5),
            *last,
        )
        nn.init.normal_(module[1].running_mean)
    return module


def script(module, path):
    torch.jit.save(torch.jit.script(module), str(path))


def trace(module, path):
    with warnings.catch_warnings():
        # BatchNorm in training mode looks at a size, of which tracing warns.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        _trace(module, path)


def _trace(module, path):
    torch.jit.save(torch.jit.trace(module, EXAMPLE, check_trace=False), str(path))


def export(module, path, **limits):
    sizes = ({0: torch.export.Dim("batch", **limits)},)
    torch.export.save(torch.export.export(module, (EXAMPLE,), dynamic_shapes=sizes), path)


def export_fixed(module, path, example=EXAMPLE):
    torch.export.save(torch.export.export(module, (example,)), path)


def opened(path, outputs="logits", **options):
    return open_target(str(path), outputs=outputs, device=CPU, **options)


WRITERS = [(script, "m.pt"), (script, "m.torchscript"), (trace, "m.ts"), (export, "m.pt2")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder with the network in each kind of file: to export it takes longer than its tests."""
    folder = tmp_path_factory.mktemp("plain")
    for write, file in WRITERS:
        write(network().eval(), folder / file)
    return folder


FILES = [file for _, file in WRITERS]


@looped("file", FILES)
def test_answers_are_the_network_s_in_batches_of_any_size(file, plain):
    wanted = network().eval()(IMAGES).detach()
    for batch_size in (3, 7, 512):
        target = opened(plain / file, batch_size=batch_size)
        assert isinstance(target, TorchTarget)
        assert isinstance(target, ScoredTarget)
        torch.testing.assert_close(target.logits(IMAGES), wanted)
        assert same_bits(target(IMAGES), release(target.logits(IMAGES)))


@looped("file", FILES)
def test_the_network_stays_differentiable(file, plain):
    gradients = []
    for some in (network().eval(), opened(plain / file).module):
        images = IMAGES.clone().requires_grad_()
        some(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients)


@looped(("write", "file"), WRITERS)
def test_confidences_are_taken_as_such_when_said_to_be(write, file, tmp_path):
    module = network(nn.Softmax(-1)).eval()
    write(module, tmp_path / file)
    target = opened(tmp_path / file, outputs="confidences")
    torch.testing.assert_close(target(IMAGES), module(IMAGES).detach())


@looped("file", FILES)
@looped("outputs", [None, "scores"])
def test_what_the_answers_are_must_be_said(file, outputs, plain):
    with pytest.raises(InvalidOptionError, match=r"say what target .*m\..* answers with"):
        opened(plain / file, outputs=outputs)


@looped(("write", "file"), WRITERS)
@looped(
    ("last", "outputs", "message"),
    [
        (nn.Unflatten(1, (1, 5)), "logits", r"target .*m\..*gave \(7, 1, 5\)"),
        (nn.Threshold(torch.inf, torch.nan), "logits", r"logits of target .*must be finite"),
        (nn.Identity(), "confidences", r"confidences of target .*must be probabilities"),
    ],
)
def test_answers_that_cannot_be_used_are_refused(write, file, last, outputs, message, tmp_path):
    write(network(last).eval(), tmp_path / file)
    with pytest.raises(InvalidTensorError, match=message):
        opened(tmp_path / file, outputs=outputs)(IMAGES)


class Pair(nn.Module):
    def __init__(self, twice: bool = False):
        super().__init__()
        self.inner, self.twice = network(), twice

    def forward(self, images):
        scores = self.inner(images)
        return scores, images.flatten(1) if self.twice else images


@looped(("write", "file"), [*WRITERS, (export_fixed, "f.pt2")])
def test_scores_are_the_only_matrix_of_an_answer(write, file, tmp_path):
    write(Pair().eval(), tmp_path / file)
    wanted = network().eval()(IMAGES).detach()
    torch.testing.assert_close(opened(tmp_path / file, batch_size=4).logits(IMAGES), wanted)
    write(Pair(twice=True).eval(), tmp_path / file)
    with pytest.raises(InvalidTensorError, match=r"must answer with one tensor.*gave tuple"):
        opened(tmp_path / file, batch_size=4)(IMAGES)


@looped(("write", "file"), WRITERS)
def test_a_file_that_ends_in_softmax_gives_no_logits(write, file, tmp_path):
    write(network(nn.Softmax(-1)).eval(), tmp_path / file)
    many = torch.cat([IMAGES, IMAGES])
    with pytest.raises(InvalidTensorError, match="declared logits, but look like confidences"):
        opened(tmp_path / file)(many)


def test_a_scripted_network_is_put_in_eval_mode(tmp_path):
    module = network()
    script(module, tmp_path / "m.pt")
    wanted = copy.deepcopy(module).eval()(IMAGES).detach()
    torch.testing.assert_close(opened(tmp_path / "m.pt").logits(IMAGES), wanted)


@looped(("write", "file"), [(trace, "m.pt"), (export, "m.pt2"), (export_fixed, "f.pt2")])
@looped("part", [0, 1])
def test_training_mode_that_was_saved_for_good_is_refused(write, file, part, tmp_path):
    module = network().eval()
    module[(1, 4)[part]].train()
    write(module, tmp_path / file)
    found = ("batch_norm", "dropout")[part]
    with pytest.raises(InvalidOptionError, match=f"training mode: its .*{found}.*model.eval"):
        opened(tmp_path / file, batch_size=4)


def test_an_exported_program_of_one_batch_size_needs_that_size_and_is_filled_up(tmp_path):
    module = network().eval()
    export_fixed(module, tmp_path / "m.pt2")
    with pytest.raises(
        InvalidOptionError, match=r"batches of exactly 4, but batch_size is 512.*Dim.*batch_size=4"
    ):
        opened(tmp_path / "m.pt2")
    target = opened(tmp_path / "m.pt2", batch_size=4)
    for count in (1, 4, 7):
        wanted = module(IMAGES[:count]).detach()
        torch.testing.assert_close(target.logits(IMAGES[:count]), wanted)


def test_the_limits_of_a_dynamic_batch_are_kept(tmp_path):
    module = network().eval()
    export(module, tmp_path / "m.pt2", min=3, max=6)
    with pytest.raises(
        InvalidOptionError, match=r"at most 6 queries at once.*batch_size=6 or less"
    ):
        opened(tmp_path / "m.pt2", batch_size=7)
    target = opened(tmp_path / "m.pt2", batch_size=6)
    torch.testing.assert_close(target.logits(IMAGES), module(IMAGES).detach())


def test_an_exported_program_says_which_shape_it_takes_and_takes_images_as_records(plain, tmp_path):
    with pytest.raises(InvalidTensorError, match=r"shape \(N, 1, 8, 8\), but got \(2, 1, 9, 9\)"):
        opened(plain / "m.pt2")(random_images(1, 2, (1, 9, 9)))
    rows = nn.Linear(64, 5)
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(rows, (torch.rand(4, 64),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "r.pt2")
    target = opened(tmp_path / "r.pt2")
    torch.testing.assert_close(target.logits(IMAGES), rows(IMAGES.flatten(1)).detach())


def test_queries_are_cast_to_the_type_that_was_exported(tmp_path):
    module = network().eval().double()
    export_fixed(module, tmp_path / "m.pt2", EXAMPLE.double())
    target = opened(tmp_path / "m.pt2", batch_size=4)
    torch.testing.assert_close(target.logits(IMAGES), module(IMAGES.double()).detach())


def test_a_program_of_two_inputs_is_refused(tmp_path):
    two = nn.Bilinear(3, 3, 2)
    torch.export.save(torch.export.export(two, (torch.rand(4, 3),) * 2), tmp_path / "m.pt2")
    with pytest.raises(CorruptDataError, match="one tensor of images, but takes 2 inputs"):
        opened(tmp_path / "m.pt2", batch_size=4)


def test_a_network_that_raises_is_named_without_its_message(tmp_path):
    script(network().eval(), tmp_path / "m.pt")
    with pytest.raises(TargetFailedError, match=r"target .*m\.pt' raised RuntimeError") as caught:
        opened(tmp_path / "m.pt")(random_images(1, 2, (1, 9, 9)))
    assert isinstance(caught.value.__cause__, RuntimeError)


@looped("file", ["m.pt", "m.ts", "m.pt2"])
def test_pickles_and_other_files_are_refused_with_the_remedy(file, tmp_path):
    path = tmp_path / file
    remedy = "Save it with `torch.export.save`" if file == "m.pt2" else "package.module:factory"
    for content in (network(), network().state_dict()):
        torch.save(content, path)
        with pytest.raises(CorruptDataError, match=remedy):
            opened(path)
    path.write_bytes(b"no archive")
    with pytest.raises(CorruptDataError, match=remedy):
        opened(path)


@looped(("member", "file"), [("constants.pkl", "m.pt"), ("archive_format", "m.pt2")])
def test_a_damaged_archive_is_refused(member, file, tmp_path):
    with zipfile.ZipFile(tmp_path / file, "w") as archive:
        archive.writestr(f"m/{member}", "damaged")
    with pytest.raises(CorruptDataError, match=r"cannot be loaded as .*RuntimeError"):
        opened(tmp_path / file)


def test_opening_a_torchscript_file_warns_of_nothing_else(tmp_path):
    script(network(), tmp_path / "m.pt")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        opened(tmp_path / "m.pt")(IMAGES)
    assert {str(some.message).split(" is ")[0] for some in seen} <= {"`torch.jit.load`"}

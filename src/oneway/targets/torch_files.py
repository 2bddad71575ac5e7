"""TorchScript and exported programs as targets: files that hold the network's code, too."""

from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from oneway.contracts import Target
from oneway.errors import CorruptDataError, InvalidOptionError
from oneway.releases import Outputs
from oneway.targets.answers import fit_shape, require_batch, require_outputs
from oneway.targets.modules import scores_in
from oneway.targets.torch_module import TorchTarget

DYNAMIC = (
    "Export it with a dynamic batch dimension, as by "
    '`torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))`'
)

TRAINING_FLAGS = {"aten::dropout": 2, "aten::feature_dropout": 2, "aten::batch_norm": 5}
"""TorchScript operators with a training mode, and the position of the argument that sets it."""


def open_torchscript(
    where: str, *, outputs: Outputs | None, device: torch.device, batch_size: int
) -> Target:
    """Open a TorchScript file.

    Args:
        where: The file, saved with ``torch.jit.save``.
        outputs: What the network answers with.
        device: Where the network goes.
        batch_size: Most queries that the network gets at once.

    Raises:
        CorruptDataError: The file holds no TorchScript, or cannot be loaded.
        InvalidOptionError: ``outputs`` is None, or the network was saved in training mode.
    """
    name = f"target {where!r}"
    outputs = require_outputs(outputs, name)
    if not _has_member(where, "constants.pkl"):
        raise CorruptDataError(
            f"{where} holds no TorchScript. A pickled module or a state dict needs your code to "
            "become a network again: name a function that builds it, as `package.module:factory`, "
            "or save it with `torch.export.save` as .pt2."
        )
    try:
        module = torch.jit.load(where, map_location=device)
    except (RuntimeError, ValueError) as error:
        raise CorruptDataError(
            f"{where} cannot be loaded as TorchScript ({type(error).__name__}). Save it again, "
            "with a version of torch that is not newer than the one here."
        ) from error
    _refuse_baked_training(module, name)
    return TorchTarget(module, outputs=outputs, batch_size=batch_size, name=name)


def open_exported(
    where: str, *, outputs: Outputs | None, device: torch.device, batch_size: int
) -> Target:
    """Open an exported program. PyTorch unpickles parts of it: open files that you trust.

    Args:
        where: The file, saved with ``torch.export.save``.
        outputs: What the network answers with.
        device: Where the network goes.
        batch_size: Most queries that the program gets at once; exactly that many, if the program
            takes one size only.

    Raises:
        CorruptDataError: The file holds no exported program, or the program takes more than one
            tensor.
        InvalidOptionError: ``outputs`` is None, the program cannot take ``batch_size`` queries,
            or it was exported in training mode.
    """
    name = f"target {where!r}"
    outputs = require_outputs(outputs, name)
    if not _has_member(where, "archive_format", "serialized_exported_program.json"):
        raise CorruptDataError(
            f"{where} holds no exported program. Save it with `torch.export.save`."
        )
    try:
        program = torch.export.load(where)
    except (RuntimeError, BadZipFile, ValueError, KeyError, AttributeError) as error:
        raise CorruptDataError(
            f"{where} cannot be loaded as an exported program ({type(error).__name__}). Export "
            "it again with the version of torch that is installed here."
        ) from error
    _refuse_exported_training(program, name)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = ExportedModule(program, batch_size, name, outputs)
    return TorchTarget(module, outputs=outputs, batch_size=batch_size, name=name)


class ExportedModule(nn.Module):
    """Feeds an exported program batches of a size and shape that the program takes."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        batch_size: int,
        name: str,
        outputs: Outputs,
    ) -> None:
        """Read the shape and type that the program takes.

        Raises:
            CorruptDataError: The program takes more than one tensor.
            InvalidOptionError: The program cannot take ``batch_size`` queries at once.
        """
        super().__init__()
        inputs = program.graph_signature.user_inputs
        values = [
            node.meta["val"]
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in inputs
        ]
        if len(inputs) != 1 or not isinstance(values[0], Tensor):
            raise CorruptDataError(
                f"{name} must take one tensor of images, but takes {len(inputs)} inputs. Export "
                "a module that takes the images alone."
            )
        batch: Any = values[0].shape[0]
        fixed = batch if type(batch) is int else None
        require_batch(fixed, batch_size, name, DYNAMIC)
        self.name, self.outputs = name, outputs
        self.sizes = [size if type(size) is int else None for size in values[0].shape[1:]]
        self.dtype = values[0].dtype
        self.least_rows = fixed or 1
        limits = None if fixed else program.range_constraints.get(batch.node.expr)
        if limits is not None:
            if limits.upper < batch_size:
                raise InvalidOptionError(
                    f"{name} takes at most {limits.upper} queries at once, but batch_size is "
                    f"{batch_size}. Pass batch_size={limits.upper} or less."
                )
            self.least_rows = max(1, int(limits.lower))
        self.inner = program.module()

    def train(self, mode: bool = True) -> Self:
        """Change the flag alone: an exported program has one mode."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Answer ``(N, ...)`` images, up to the batch size."""
        images = fit_shape(images, (None, *self.sizes), self.name)
        rows = len(images)
        if rows < self.least_rows:
            surplus = images[-1:].expand(self.least_rows - rows, *images.shape[1:])
            images = torch.cat([images, surplus])
        answer = self.inner(images.to(self.dtype))
        return scores_in(answer, len(images), self.outputs, self.name)[:rows]


def _has_member(where: str, *names: str) -> bool:
    """Return whether a PyTorch archive holds a file of one of these names."""
    if not is_zipfile(where):
        return False
    with ZipFile(where) as archive:
        return any(Path(member).name in names for member in archive.namelist())


def _refuse_baked_training(module: Any, name: str) -> None:
    graph = module.inlined_graph
    for operator, position in TRAINING_FLAGS.items():
        for node in graph.findAllNodes(operator):
            if node.inputsAt(position).toIValue() is True:
                raise _training(name, operator)


def _refuse_exported_training(program: torch.export.ExportedProgram, name: str) -> None:
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        for position, argument in enumerate(schema.arguments):
            if argument.name in ("train", "training"):
                given = node.args[position] if position < len(node.args) else None
                if node.kwargs.get(argument.name, given) is True:
                    raise _training(name, str(node.target))


def _training(name: str, operator: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"{name} was saved in training mode: its {operator} is fixed to it, so that answers depend "
        "on chance or on the batch. Call `model.eval()` before it is traced or exported."
    )

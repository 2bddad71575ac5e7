"""`oneway export`: write a codebook as ONNX operators, alone or behind a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneway.cli.common import check_suffix, command
from oneway.cli.paths import Writes

if TYPE_CHECKING:
    import onnx


@command
def export(
    guard: Annotated[Path, typer.Argument(help="A codebook, from `oneway codebook`.")],
    out: Annotated[Path, typer.Option(help="File to write, .onnx."), Writes()],
    model: Annotated[
        Path | None, typer.Option(help="An .onnx model to put the codebook behind.")
    ] = None,
    output_name: Annotated[
        str | None, typer.Option(help="The model's output to guard: float32 logits.")
    ] = None,
) -> None:
    r"""Write a codebook as ONNX operators, alone or behind a model, to serve without Python.

    Behind a model only guarded probabilities come out: all its other outputs are dropped. The graph
    cannot refuse scores that are not finite, as oneway does.

    For example:

        oneway export work/guard.safetensors --model model.onnx --output-name logits \
            --out guarded.onnx
    """
    from oneway.defenses import codebook_to_onnx, guard_onnx_model
    from oneway.defenses.codebook import CodebookRelease
    from oneway.defenses.onnx_export import NEEDED
    from oneway.errors import InvalidOptionError
    from oneway.extras import load_extra
    from oneway.files import atomic_file

    check_suffix(out, "--out", ".onnx")
    onnx = load_extra("onnx", **NEEDED)
    if (model is None) != (output_name is None):
        raise InvalidOptionError("--model and --output-name go together: give both, or neither.")
    release = CodebookRelease.load(guard)
    if model is None or output_name is None:
        graph = codebook_to_onnx(release)
    else:
        graph = guard_onnx_model(_read_model(model), release, output_name)
    with atomic_file(out) as path:
        onnx.save(graph, path)
    typer.echo(f"wrote {out}")


def _read_model(path: Path) -> "onnx.ModelProto":
    """Return the model of a file.

    Raises:
        CorruptDataError: The file is not an ONNX model.
        MissingDataError: The file is not there.
    """
    from oneway.defenses.onnx_export import NEEDED
    from oneway.errors import CorruptDataError, MissingDataError
    from oneway.extras import load_extra

    broken = load_extra("google.protobuf.message", **NEEDED, package="protobuf").DecodeError
    if not path.is_file():
        raise MissingDataError(f"there is no model file {path}.")
    try:
        return load_extra("onnx", **NEEDED).load(path)  # type: ignore[no-any-return]
    except broken as error:
        raise CorruptDataError(
            f"{path} is not an ONNX model ({type(error).__name__}). Export it again."
        ) from error

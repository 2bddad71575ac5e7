"""`oneway train target` and `oneway train inverter`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oneway.cli.common import (
    DataRoot,
    Device,
    Seed,
    choose_device,
    command,
    print_notes,
    progress,
)
from oneway.cli.completion import ShowsExamples
from oneway.cli.paths import Reads, Writes

if TYPE_CHECKING:
    from torch import nn

    from oneway.data import Splits

app = typer.Typer(no_args_is_help=True, help="Train a target classifier, or an inverter.")


@app.command(cls=ShowsExamples)
@command
def target(
    out: Annotated[
        Path,
        typer.Option(help="Folder to write to."),
        Writes(("target.safetensors", "private.npz", "auxiliary.npz", "test.npz")),
    ],
    data: Annotated[
        Literal["digits", "mnist", "qmnist", "celeba", "facescrub", "folder", "npz"],
        typer.Option(help="Data set."),
    ] = "digits",
    data_root: DataRoot = None,
    data_path: Annotated[
        str | None,
        typer.Option(help="File or folder in it, where the data set needs one."),
        Reads(below="data_root"),
    ] = None,
    side: Annotated[
        int | None, typer.Option(min=1, help="Scale images to so many pixels a side.")
    ] = None,
    preset: Annotated[
        Literal["small", "paper-mnist", "paper-faces"], typer.Option(help="Architecture.")
    ] = "small",
    private: Annotated[int, typer.Option(min=1, help="Images to train on.")] = 2000,
    auxiliary: Annotated[int, typer.Option(min=1, help="Images for attackers.")] = 2250,
    test: Annotated[int, typer.Option(min=1, help="Images to query with.")] = 750,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the private images.")] = 8,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    r"""Train a target, and write it with its splits and clean logits.

    Writes target.safetensors, and private.npz, auxiliary.npz and test.npz, each with `images`,
    `labels` and `logits`. The splits share no image.

    For example:

        oneway train target --out work

        oneway train target --out work --data folder --data-root ~/photos --side 64 \
            --preset paper-faces --private 8000 --auxiliary 8000 --test 1000
    """
    import torch

    from oneway.data import load_dataset, split_dataset
    from oneway.defenses import save_module
    from oneway.targets import TARGET_PRESETS, TargetNetwork, TargetTrainingSettings, train_target

    where = choose_device(device)
    with progress() as report:
        dataset = load_dataset(data, data_root, path=data_path, side=side, report=report)
    print_notes(dataset.notes)
    splits = split_dataset(dataset, private=private, auxiliary=auxiliary, test=test, seed=seed)
    shape, size = splits.private_images.shape[1:], TARGET_PRESETS[preset]
    torch.manual_seed(seed)
    network = TargetNetwork(splits.num_classes, shape, width=size.width, blocks=size.blocks)
    network = network.to(where)
    with progress() as report:
        train_target(
            network,
            splits.private_images.to(where),
            splits.private_labels.to(where),
            settings=TargetTrainingSettings(epochs=epochs),
            generator=torch.Generator().manual_seed(seed),
            on_epoch=lambda epoch, _: report("train the target", epoch / epochs),
        )
    accuracy = _write_splits(out, splits, network)
    save_module(out / "target.safetensors", network, "target", {"data": data, "accuracy": accuracy})
    typer.echo(f"accuracy on {test} test images: {accuracy:.4f}")
    typer.echo(f"wrote {out}/target.safetensors, private.npz, auxiliary.npz and test.npz")


def _write_splits(out: Path, splits: "Splits", network: "nn.Module") -> float:
    """Write each split with its clean logits; return the accuracy on the test images."""
    import torch

    from oneway.files import write_npz
    from oneway.targets import TorchTarget

    target = TorchTarget(network)
    for name in ("private", "auxiliary", "test"):
        images, labels = getattr(splits, f"{name}_images"), getattr(splits, f"{name}_labels")
        logits = target.logits(images)
        arrays = {
            "images": (images * 255).round().to(torch.uint8),
            "labels": labels,
            "logits": logits,
        }
        write_npz(out / f"{name}.npz", {key: each.numpy() for key, each in arrays.items()})
    # The test split is the last.
    return float((logits.argmax(-1) == labels).double().mean())


@app.command(cls=ShowsExamples)
@command
def inverter(
    auxiliary: Annotated[
        Path, typer.Argument(help="auxiliary.npz with `images` and `logits` or `confidences`.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors."), Writes()],
    preset: Annotated[Literal["small", "paper"], typer.Option(help="Width.")] = "small",
    input_transform: Annotated[
        Literal["faithful", "standardized", "unscaled", "within-label", "leading"],
        typer.Option(help="Input transform."),
    ] = "faithful",
    hidden_layers_removed: Annotated[
        int,
        typer.Option(
            min=0,
            help="Layers fewer than the attacker's; the paper's surrogate: 2.",
            rich_help_panel="Surrogate",
        ),
    ] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Most passes over the images.")] = 24,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train the defender's surrogate inverter on clean scores.

    For example:

        oneway train inverter work/auxiliary.npz --out work/surrogate.safetensors
    """
    import torch

    from oneway.data import image_tensor, read_npz
    from oneway.defenses import save_module
    from oneway.interface.models import scores_to_confidences, take_array
    from oneway.inversion import (
        INVERTER_WIDTHS,
        Inverter,
        TrainingSettings,
        full_depth,
        train_inverter,
    )

    where = choose_device(device)
    arrays = read_npz(auxiliary)
    images = image_tensor(take_array(arrays, auxiliary, "images"), auxiliary).to(where)
    confidences = scores_to_confidences(arrays, auxiliary).to(where)
    shape = images.shape[1:]
    torch.manual_seed(seed)
    network = Inverter(
        confidences.shape[-1],
        shape,
        width=INVERTER_WIDTHS[preset],
        hidden_layers=full_depth(*shape[1:]) - hidden_layers_removed,
        input_transform=input_transform,
    ).to(where)
    with progress() as report:
        errors = train_inverter(
            network,
            confidences,
            images,
            settings=TrainingSettings(epochs=epochs),
            generator=torch.Generator().manual_seed(seed),
            on_epoch=lambda epoch: report("train the inverter", epoch.epoch / epoch.epochs),
        )
    save_module(out, network, "inverter", {"held_out_errors": errors})
    typer.echo(f"held-out error per pixel: {min(errors):.4f} after {len(errors)} epochs")
    typer.echo(f"wrote {out}")

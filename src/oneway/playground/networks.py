"""What the page needs trained: a target, a surrogate, codebooks and attackers, in one file."""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from oneway.attacks import inversion_attacks
from oneway.benchmark import Experiment, ExperimentSpec
from oneway.benchmark.runner import trained_target
from oneway.benchmark.spec import without_later_fields
from oneway.contracts import AttackerKnowledge, Defense, Reconstructor, TrainDecoder, TrainingData
from oneway.data import Dataset, ProgressCallback
from oneway.defenses import build_defense
from oneway.defenses.codebook import Codebook, CodebookRelease
from oneway.errors import CorruptDataError
from oneway.evaluation import ReleaseSpec, Store, run_attack
from oneway.evaluation.randomness import Stream
from oneway.evaluation.store import spec_key
from oneway.files import corrupt, read_tensors, write_tensors
from oneway.inversion import Inverter, Mixture
from oneway.playground.settings import SLIDERS, Setting, all_settings, mixed_settings
from oneway.releases import guarded_release, release
from oneway.targets import TargetNetwork

WHAT = "playground's network"

REMEDY = (
    "Install oneway again, or train the networks anew: `python benchmarks/playground_networks.py`."
)

KINDS = {"target": TargetNetwork, "inverter": Inverter, "codebook": Codebook}


@dataclasses.dataclass(frozen=True)
class Networks:
    """Trained networks and fitted codebooks, before anybody moved a slider.

    Attributes:
        target: The undefended classifier.
        surrogate: The defender's own inverter, which the adversarial noise misleads.
        codebooks: By setting, at every position of the codebook's sliders.
        static: The decoder of the attacker who trained on clean scores.
        mixed: By defense, the decoder of the attacker who trained on a mixture of its settings.
        label_alone: ``(K, C, H, W)`` reconstruction of each label, in ``[0, 1]``.
    """

    target: nn.Module
    surrogate: nn.Module
    codebooks: Mapping[Setting, Codebook]
    static: nn.Module
    mixed: Mapping[str, nn.Module]
    label_alone: Tensor

    def defense(self, setting: Setting) -> Defense:
        """Build the defense of a setting."""
        options, codebook = dict(setting.options), self.codebooks.get(setting)
        return build_defense(setting.defense, options, self.surrogate, state=codebook)

    def save(self, path: Path, key: str) -> None:
        """Write all of them to one file.

        Decoders of attackers are narrowed to float16, which moves a pixel by less than a
        displayed gray level; target, surrogate and codebooks are exact.

        Args:
            path: The file.
            key: Of :func:`networks_key`.
        """
        tensors, modules = {"label": self.label_alone.half()}, dict[str, Any]()

        def put(name: str, kind: str, module: nn.Module, *, narrow: bool = False) -> None:
            modules[name] = {"kind": kind, "architecture": module.architecture}
            for entry, value in module.state_dict().items():
                narrowed = value.half() if narrow and value.ndim > 1 else value
                tensors[f"{name}/{entry}"] = narrowed

        put("target", "target", self.target)
        put("surrogate", "inverter", self.surrogate)
        for number, setting in enumerate(all_settings("codebook")):
            put(f"codebook {number}", "codebook", self.codebooks[setting])
        for name, decoder in {"static": self.static, **self.mixed}.items():
            parts = decoder.decoders if isinstance(decoder, Mixture) else [decoder]
            weights = decoder.weights if isinstance(decoder, Mixture) else torch.ones(1)
            tensors[f"attacker {name} weights"] = weights
            for number, part in enumerate(parts):
                put(f"attacker {name} {number}", "inverter", part, narrow=True)
        write_tensors(path, tensors, {"key": key, "modules": modules})


def networks_file() -> Path:
    """Return the file that oneway is installed with."""
    return Path(str(resources.files("oneway.playground") / "networks.safetensors"))


def networks_key(spec: ExperimentSpec, data: str) -> str:
    """Return the hash of what is trained: spec, sliders' settings and data.

    Args:
        spec: Target, surrogate and attackers.
        data: SHA-256 of the images, as :attr:`Experiment.data`.
    """
    settings = [each.as_json() for each in all_settings("codebook")]
    mixed = {name: [each.as_json() for each in mixed_settings(name)] for name in SLIDERS}
    described = without_later_fields(dataclasses.asdict(spec))
    return spec_key({"spec": described, "codebooks": settings, "mixed": mixed, "data": data})


def load_networks(path: Path, key: str) -> Networks:
    """Read the file that :meth:`Networks.save` wrote.

    Args:
        path: The file.
        key: Of :func:`networks_key`.

    Raises:
        MissingDataError: The file is missing.
        CorruptDataError: :meth:`Networks.save` did not write the file, or wrote it for another
            spec or other data.
    """
    tensors, header = read_tensors(path, WHAT, REMEDY)
    if header.get("key") != key:
        raise CorruptDataError(
            f"{path} was trained for other digits or another spec than the installed ones. {REMEDY}"
        )

    def take(name: str) -> Any:
        described = header["modules"][name]
        module = KINDS[described["kind"]](**described["architecture"])
        start = f"{name}/"
        entries = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        module.load_state_dict(entries)
        # As the store gives networks back: they compute the same, to the bit.
        return convert_conv2d_weight_memory_format(module.eval(), torch.channels_last)

    def take_decoder(name: str) -> Mixture:
        weights = tensors[f"attacker {name} weights"]
        parts = [take(f"attacker {name} {number}") for number in range(len(weights))]
        return Mixture(parts, weights)

    try:
        settings = all_settings("codebook")
        return Networks(
            target=take("target"),
            surrogate=take("surrogate"),
            codebooks={each: take(f"codebook {at}") for at, each in enumerate(settings)},
            static=take_decoder("static"),
            mixed={name: take_decoder(name) for name in SLIDERS if mixed_settings(name)},
            label_alone=tensors["label"].float(),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise corrupt(path, WHAT, REMEDY, error) from error


def train_networks(
    spec: ExperimentSpec, dataset: Dataset, store: Store, report: ProgressCallback
) -> Networks:
    """Train whatever the store lacks, as an experiment does.

    Args:
        spec: Target, surrogate and attackers.
        dataset: The data set that ``spec`` names.
        store: Keeps networks.
        report: Receives the progress.

    Raises:
        InvalidOptionError: The data set is too small for the splits of ``spec``.
    """
    experiment = Experiment(spec, dataset, store, device=torch.device("cpu"), report=report)
    attackers, images = experiment.attackers, experiment.splits.auxiliary_images
    target = trained_target(spec, experiment.splits, store, report)
    logits = target.logits(images)
    clean = release(logits)
    bare = ReleaseSpec("none", "none")
    surrogate, _ = experiment.defender.trained_surrogate(bare, clean)

    def train(title: str) -> TrainDecoder:
        return lambda *data: attackers.train_decoder(f"attack {title}", *data)[0]

    knowledge = AttackerKnowledge(
        images=images, clean=clean, released=clean, held_out=attackers.held_out
    )
    label_alone = _label_alone(knowledge, train("the label alone"))
    networks = Networks(
        target=target.module,
        surrogate=surrogate,
        codebooks=_fit_codebooks(images, logits, spec.seed, report),
        static=train("clean scores")(clean, images, attackers.held_out),
        mixed={},
        label_alone=label_alone,
    )

    def mixture(defense: str) -> nn.Module:
        """Train on scores of a defense at several settings, a row at each in turn."""
        settings, released = mixed_settings(defense), torch.empty_like(clean)
        for position, setting in enumerate(settings):
            rows = slice(position, None, len(settings))
            released[rows] = guarded_release(
                networks.defense(setting), logits[rows], images[rows]
            ).confidences
        return train(f"{defense} at several settings")(released, images, attackers.held_out)

    mixed = {name: mixture(name) for name in SLIDERS if mixed_settings(name)}
    return dataclasses.replace(networks, mixed=mixed)


def _label_alone(knowledge: AttackerKnowledge, train: TrainDecoder) -> Tensor:
    """Return the ``(K, C, H, W)`` reconstruction of each label by the best attacker of labels."""
    tried = dict[str, Reconstructor]()

    def attack(knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        tried.update(inversion_attacks()["label-only"](knowledge, train))
        return tried

    each = torch.eye(knowledge.released.shape[-1])
    held_out = knowledge.held_out
    scores, images = knowledge.released[held_out], knowledge.images[held_out]
    result = run_attack("label-only", attack, knowledge, train, scores, images)
    assert result is not None  # noqa: S101  it applies to every release
    with torch.no_grad():
        return tried[result.reconstructor].reconstruct(each.unsqueeze(0))


def _fit_codebooks(
    images: Tensor, logits: Tensor, seed: int, report: ProgressCallback
) -> dict[Setting, Codebook]:
    """Fit a codebook at every position of its sliders."""
    training_data = TrainingData(None, None, None, images, logits)
    settings, codebooks = all_settings("codebook"), dict[Setting, Codebook]()
    for setting in settings:
        generator = Stream(seed, "codebook order").generator()
        options = dict[str, Any](setting.options)
        codebook, _ = CodebookRelease.train(training_data, generator=generator, **options)
        codebooks[setting] = cast("Codebook", codebook)
        report("fit codebooks", len(codebooks) / len(settings))
    return codebooks

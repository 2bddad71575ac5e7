"""Many people at 64x64: the paper's noise before attackers who learned before it, and after.

A classifier of Yang et al.'s four blocks learns private photographs of many people; attackers and
defender have faces of other people. Each release is attacked by a decoder of clean scores, which is
the paper's attacker (``static``), and by kernel ridge regression and cell means, which learn from
the release. A judge then looks for each reconstruction among all test photographs (``rank_1``), and
among the people by the mean of their training photographs (``person_1``). The label alone names as
many people as the classifier is accurate.

Two controls add noise that does not depend on the query: ``input-free-noise``, and the paper's
noise computed with the photograph of somebody else, which the scores choose.

Intervals are over people, whose queries are drawn together; those of a mean are over seeds. Results
of a cell are kept in the cache, so that an interrupted run goes on where it was. Pictures stay out
of the records.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from oneway.attacks import (
    CellMeans,
    IdentificationAttack,
    InversionAttack,
    KernelRidge,
    Matching,
    Retrained,
    Static,
)
from oneway.benchmark import bundled_spec, load_data
from oneway.benchmark.runner import split_data, trained_target
from oneway.benchmark.spec import ExperimentSpec
from oneway.benchmark.summary import estimate
from oneway.contracts import AttackerKnowledge, Defense
from oneway.data import no_progress
from oneway.defenses import needs_surrogate
from oneway.defenses.identity import Identity
from oneway.evaluation import AttackResult, GalleryMatching, MatchedScores, Store
from oneway.evaluation.attackers import prepare_attackers
from oneway.evaluation.defenders import Defender, DefenderImages
from oneway.evaluation.grading import run_attack
from oneway.evaluation.matching import NOISY_COPIES, TRUE_INPUTS
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import numerics_of, origin
from oneway.evaluation.settings import ReleaseSpec
from oneway.evaluation.store import fingerprint, read_json_lines, write_json_lines
from oneway.inversion import TrainingSettings
from oneway.metrics import (
    Embedder,
    FeatureRegression,
    Interval,
    PrincipalComponents,
    bootstrap_ratio,
    expected_hits,
    rank_share,
    reidentification_ranks,
)
from oneway.report.page.charts import (
    BOTTOM,
    HEIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Legend,
    Level,
    Point,
    log_axis,
    plane_chart,
)
from oneway.report.page.render import write_charts
from oneway.report.table import Column, Listing
from oneway.targets import DefendedTarget

ANOTHER = "adversarial noise, .4, of another picture"
RELEASES = (
    "none",
    "adversarial noise, .4",
    ANOTHER,
    "adversarial noise, .1",
    "label only",
    "input-free noise, label, .4",
    "codebook, 20 members",
    "PPF, label kept",
)
MID = ReleaseSpec(
    "MID, beta 0.005",
    "mutual-information",
    {"beta": 0.005, "epochs": 12, "learning_rate": 0.003},
)
"""A classifier that is trained anew."""

MID_WIDTH = 16
"""Largest width of a classifier that MID is trained for, which takes as long as the classifier."""

DECODED = ("none", "adversarial noise, .1", "adversarial noise, .4", ANOTHER)
"""Releases with a retrained decoder, where one is asked for."""

AUXILIARY, PICTURES = 3000, 500
"""Faces of other people that attackers have, and of them those that another's noise is made of."""

EPOCHS, CHANNELS, SURROGATE_EPOCHS = 24, 8, 12
"""Epochs and width of decoders, too few to have converged, and epochs of the surrogate."""

DRAWS, REPEATS = 2000, 10
"""Draws of people for an interval, and answers to each candidate where they are random."""

JUDGED_BY_NETWORK = 500
"""Queries that a network for faces judges, which takes a tenth of a second for each picture."""

ATTACKERS = {"static": "diamond", "kernel_ridge": "disc"}
"""Attackers of the picture, with the shapes of their marks."""

SHORT = {
    "none": "clean scores",
    "adversarial noise, .1": "paper's noise, .1",
    "adversarial noise, .4": "paper's noise, .4",
    ANOTHER: "noise of another picture",
    "input-free noise, label, .4": "input-free noise",
    "PPF, label kept": "PPF",
    "codebook, 20 members": "codebook",
}
"""Names of releases in the picture."""

PRINTED = ("seed", "release", "attack", "accuracy", "l1", "error", "rank_1", "network_rank_1")
JUDGED = ("error", "rank_1", "rank_5", "person_1", "person_5")
OF_ATTACK = (*JUDGED, "error_less_clean", "rank_1_less_clean")
OF_RELEASE = (
    *("accuracy", "accuracy_top_5", "l1", "label_changes"),
    *("matching_true_inputs", "matching_noisy_copies"),
)
"""Fields whose mean over seeds is recorded."""

Row = dict[str, Any]


class Ridge(KernelRidge):
    """Kernel ridge regression with the two regressions that win on many classes."""

    regressions: ClassVar = KernelRidge.regressions[:2]


ATTACKS: dict[str, InversionAttack] = {
    attack.name: attack for attack in (Static(), CellMeans(), Ridge(), Retrained())
}
CHOICES = (Matching.name, *ATTACKS)


@dataclass(frozen=True)
class Photographs:
    """A set of people with a classifier.

    Attributes:
        title: The set in words.
        preset: Preset of the leaderboard that names its files.
        private: Photographs that train the classifier.
        test: Photographs that are asked about.
        width: Channels of the classifier's first block.
        epochs: Epochs of its training.
        smoothing: Share of a label that is spread over all people in training.
    """

    title: str
    preset: str
    private: int
    test: int
    width: int
    epochs: int
    smoothing: float = 0.1

    @property
    def releases(self) -> tuple[str, ...]:
        """Names of the releases that are measured by default."""
        return RELEASES if self.width > MID_WIDTH else (*RELEASES, MID.name)

    def experiment(self, seed: int) -> ExperimentSpec:
        """Return data, target, surrogate and attackers."""
        spec = bundled_spec("leaderboard", "people")
        return replace(
            spec,
            seed=seed,
            releases=(*spec.releases, MID),
            surrogate=replace(
                spec.surrogate,
                input_transform="standardized",
                training=replace(spec.surrogate.training, epochs=SURROGATE_EPOCHS),
            ),
            data=replace(
                bundled_spec("leaderboard", self.preset).data,
                side=0,
                private=self.private,
                auxiliary=AUXILIARY,
                test=self.test,
                calibration=0,
            ),
            target=replace(
                spec.target,
                width=self.width,
                training=replace(
                    spec.target.training, epochs=self.epochs, label_smoothing=self.smoothing
                ),
            ),
            attackers=replace(
                spec.attackers,
                input_transforms=("standardized",),
                widths=(CHANNELS,),
                training=TrainingSettings(epochs=EPOCHS, learning_rate=0.01, schedule="one-cycle"),
                most_epochs=EPOCHS,
            ),
        )


SETS = {
    "people": Photographs("250 people at 64x64", "people", 4686, 1047, width=48, epochs=24),
    "people-narrow": Photographs(
        "250 people at 64x64, narrow classifier", "people", 3700, 1000, width=32, epochs=30
    ),
    "celebrities": Photographs("24 people at 64x64", "faces", 5300, 1000, width=16, epochs=12),
    "celebrities-unsmoothed": Photographs(
        "24 people at 64x64, without label smoothing",
        *("faces", 5300, 1000),
        width=16,
        epochs=12,
        smoothing=0.0,
    ),
}


@dataclass(frozen=True)
class AnotherPicture:
    """The paper's noise, computed with another picture than the query: one that the scores choose.

    Attributes:
        noise: Adversarial noise.
        pictures: ``(P, C, H, W)`` pictures of other people.
    """

    noise: Defense
    pictures: Tensor
    requires_input: ClassVar = False
    keeps_label: ClassVar = True
    deterministic: ClassVar = True

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Add the noise to ``(N, K)`` logits."""
        # Coarse, so that a score's last bits, which vary with the batch, do not choose.
        scores = logits.log_softmax(-1)  # a constant that logits share is not in the scores
        coarse = (100 * scores[:, :4].double()).round().long()
        chosen = (coarse @ torch.tensor([1, 31, 961, 29791])) % len(self.pictures)
        return self.noise(logits, self.pictures[chosen])


class Stage:
    """Classifier, attackers and judge on one seed; each part is made when it is first needed."""

    def __init__(self, data: str, seed: int, root: Path, store: Store) -> None:
        """Load and split the photographs."""
        self.spec, self.store = SETS[data].experiment(seed), store
        self.splits = split_data(self.spec, *load_data(self.spec.data, root))
        splits = self.splits
        self.attackers = prepare_attackers(
            self.spec.attackers, splits.auxiliary_images, store, seed, no_progress
        )
        self.data = fingerprint(splits.private_images, splits.auxiliary_images, splits.test_images)

    @cached_property
    def target(self) -> Any:
        """The classifier, trained if the store lacks it."""
        return trained_target(self.spec, self.splits, self.store, no_progress)

    @property
    def clean(self) -> Tensor:
        """Clean ``(M, K)`` scores of the auxiliary photographs."""
        return self.answers("none")["own"]

    @cached_property
    def matching(self) -> GalleryMatching:
        """The attack that asks about each candidate."""
        return GalleryMatching(self.splits.test_images, self.matched("none"), self.spec.seed)

    @cached_property
    def components(self) -> PrincipalComponents:
        """The judge's description of faces."""
        return PrincipalComponents.fit(self.splits.auxiliary_images)

    def right(self, scores: Tensor) -> Tensor:
        """Return whether the person of each test photograph has the top score, or one of five."""
        among = scores.topk(5, -1).indices == self.splits.test_labels.unsqueeze(-1)
        return torch.stack([among[:, 0], among.any(-1)], -1).double()

    def row(self, name: str) -> ReleaseSpec:
        """Return the spec of a release; noise of another picture has that of the paper's noise."""
        known = "adversarial noise, .4" if name == ANOTHER else name
        return next(each for each in self.spec.releases if each.name == known)

    def defense(self, name: str) -> Defense:
        """Return a release's defense, trained if it needs to be."""
        if name == "none":
            return Identity()
        splits = self.splits
        images = DefenderImages(
            splits.auxiliary_images,
            self.attackers.held_out,
            splits.private_images,
            splits.private_labels,
        )
        defender = Defender(
            self.spec.surrogate, (), images, self.store, self.attackers.trainer, no_progress
        )
        defense = defender.build(self.row(name), self.target, self.clean).defense
        if name != ANOTHER:
            return defense
        return AnotherPicture(defense, splits.auxiliary_images[:PICTURES])

    def key(
        self, name: str, attack: InversionAttack | IdentificationAttack | None, **more: str
    ) -> Mapping[str, Any]:
        """Return what decides the results of an attack on a release, or of the release alone."""
        spec, row = self.spec, self.row(name)
        decoded = isinstance(attack, InversionAttack) and attack.trains_decoders
        return {
            "release": name,
            "attack": attack and [attack.name, attack.numerics],
            "target": dataclasses.asdict(spec.target),
            "surrogate": dataclasses.asdict(spec.surrogate)
            if needs_surrogate(row.defense)
            else None,
            "decoders": str(spec.attackers) if decoded else None,
            "options": str(row.options),
            "seed": spec.seed,
            "data": self.data,
            **more,
        }

    def answers(self, name: str) -> Mapping[str, Tensor]:
        """Return the scores that a release gives to the attackers' photographs and to queries."""

        def asked() -> Mapping[str, Tensor]:
            answering = DefendedTarget(self.target, self.defense(name))
            own = answering(self.splits.auxiliary_images)
            return {"own": own, "queries": answering(self.splits.test_images)}

        return self.store.tensors("identities", self.key(name, None, role="answers"), asked)

    def matched(self, name: str) -> MatchedScores:
        """Return what the attack that asks about each candidate knows and compares."""
        answers, answering = self.answers(name), DefendedTarget(self.target, self.defense(name))
        knowledge = replace(
            self.known(answers["own"]),
            query=answering.repeated,
            random=not answering.defense.deterministic,
            repeats=(REPEATS,),
        )
        return MatchedScores(knowledge, answers["queries"])

    def known(self, released: Tensor) -> AttackerKnowledge:
        """Return what attackers know of a release, given its answers to auxiliary photographs."""
        images, held_out = self.splits.auxiliary_images, self.attackers.held_out
        return AttackerKnowledge(images, self.clean, released, held_out)

    def shares(self, name: str) -> Mapping[str, Tensor]:
        """Return shares of queries that matching identifies at rank 1 and 5, by gallery."""

        def found() -> Mapping[str, Tensor]:
            results = self.matching.results(self.matched(name))
            return {
                kind: torch.tensor([result.rank_1, result.rank_5])
                for kind, result in results.items()
            }

        return self.store.tensors("identities", self.key(name, Matching()), found)

    def gains(self, name: str, attack: InversionAttack) -> Mapping[str, Tensor]:
        """Return what an attack gains from a release, by query: see :meth:`judged`."""

        def train(scores: Tensor, photographs: Tensor, held_out: Tensor) -> torch.nn.Module:
            return self.attackers.train_decoder(name, scores, photographs, held_out)[0]

        def attacked() -> Mapping[str, Tensor]:
            answers = self.answers(name)
            knowledge, images = self.known(answers["own"]), self.splits.test_images
            result = run_attack(attack.name, attack, knowledge, train, answers["queries"], images)
            assert result is not None
            return self.judged(result)

        return self.store.tensors("identities", self.key(name, attack), attacked)

    def judged(self, result: AttackResult) -> Mapping[str, Tensor]:
        """Return each query's error, whether it and its person are named, and a picture of it."""
        splits, held_out = self.splits, self.attackers.held_out
        assert result.own_reconstructions is not None
        regression = FeatureRegression.fit(
            self.components, splits.auxiliary_images[held_out], result.own_reconstructions
        )
        ranks = reidentification_ranks(
            self.components,
            splits.test_images,
            result.reconstructions,
            generator=Stream(self.spec.seed, "gallery").generator(),
            gallery=len(splits.test_images),
            regression=regression,
        )
        # By the same model as the ranks: expected features, each in units of what is left open.
        labels, scale = splits.private_labels, regression.residual.clamp_min(1e-12).sqrt()
        features = self.components(splits.private_images) - regression.center
        people = torch.stack([features[labels == k].mean(0) for k in range(splits.num_classes)])
        seen = regression.slope * (self.components(result.reconstructions) - regression.shift)
        distances = torch.cdist(seen / scale, people / scale)
        named = [expected_hits(distances, splits.test_labels, within) for within in (1, 5)]
        return {
            "error": result.errors.double(),
            "rank_1": (ranks <= 1).double(),
            "rank_5": (ranks <= 5).double(),
            "person_1": named[0].double(),
            "person_5": named[1].double(),
            "reconstructions": result.reconstructions.half(),
        }


def interval(values: Tensor, people: Tensor, seed: int) -> Interval:
    """Return the mean over queries, with its 95 % interval over draws of people."""
    members = people.unique(return_inverse=True)[1]
    counts = members.bincount().double()
    sums = torch.zeros_like(counts).index_add_(0, members, values.double())
    generator = torch.Generator().manual_seed(seed)
    return bootstrap_ratio(sums, counts, generator=generator, resamples=DRAWS)


def measure(
    stage: Stage, attacks: Sequence[InversionAttack], names: Sequence[str], *, matching: bool
) -> Iterator[Row]:
    """Yield a record for each release and attack."""
    spec, labels = stage.spec, stage.splits.test_labels
    shared: Row = {
        "seed": spec.seed,
        "label_smoothing": spec.target.training.label_smoothing,
        "queries": len(labels),
        "people": stage.splits.num_classes,
    }
    clean = stage.answers("none")["queries"]
    for name in names:
        released = stage.answers(name)["queries"]
        right = stage.right(released)
        told = {
            "release": name,
            **shared,
            "accuracy": float(right[:, 0].mean()),
            "accuracy_top_5": float(right[:, 1].mean()),
            "l1": float((released - clean).abs().sum(-1).mean()),
            "label_changes": int((released.argmax(-1) != clean.argmax(-1)).sum()),
        }
        if matching:
            shares = stage.shares(name)
            told["matching_true_inputs"] = float(shares[TRUE_INPUTS][0])
            told["matching_noisy_copies"] = float(shares[NOISY_COPIES][0])
        for attack in attacks:
            if attack.name == Retrained.name and name not in DECODED:
                continue
            found, undefended = stage.gains(name, attack), stage.gains("none", attack)
            row: Row = {**told, "attack": attack.name}
            row["numerics"] = numerics_of([attack.name, *([Matching.name] if matching else [])])
            for field in JUDGED:
                values, less = found[field], found[field] - undefended[field]
                for kind, each in ((field, values), (f"{field}_less_clean", less)):
                    ends = interval(each, labels, spec.seed)
                    row |= {kind: ends.estimate, f"{kind}_low": ends.low, f"{kind}_high": ends.high}
            yield row


def face_network() -> Embedder:
    """Return dlib's network for faces: a judge that has never seen these photographs."""
    dlib = import_module("dlib")
    folder = find_spec("face_recognition_models")
    assert folder is not None, "pip install dlib-bin face-recognition-models"
    assert folder.origin is not None
    weights = Path(folder.origin).parent / "models/dlib_face_recognition_resnet_model_v1.dat"
    network = dlib.face_recognition_model_v1(str(weights))

    def describe(images: Tensor) -> Tensor:
        chips = torch.nn.functional.interpolate(images.float(), size=(150, 150), mode="bilinear")
        levels = (255 * chips.clamp(0, 1)).round().byte().expand(-1, 3, -1, -1)
        faces = [np.ascontiguousarray(face) for face in levels.movedim(1, -1).numpy()]
        return torch.from_numpy(np.array(network.compute_face_descriptor(faces), dtype=np.float64))

    return describe


def judged_by_network(stage: Stage, names: Sequence[str]) -> Iterator[Row]:
    """Yield a record for each release: photographs that a network for faces re-identifies."""
    network, truth = face_network(), stage.splits.test_images[:JUDGED_BY_NETWORK]
    for name in names:
        ranks = reidentification_ranks(
            network,
            truth,
            stage.gains(name, Ridge())["reconstructions"][: len(truth)].float(),
            generator=Stream(stage.spec.seed, "gallery").generator(),
            gallery=len(truth),
        )
        shares = {f"network_rank_{rank}": rank_share(ranks, rank) for rank in (1, 5)}
        yield {
            "release": name,
            "seed": stage.spec.seed,
            "gallery": len(truth),
            **shares,
            "numerics": numerics_of([Ridge.name]),
        }


def averages(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the means over seeds of each data set and release, with all attacks in one record."""
    attacked = [row for row in rows if "attack" in row]
    for data, release in dict.fromkeys((row["data"], row["release"]) for row in attacked):
        chosen = [row for row in attacked if (row["data"], row["release"]) == (data, release)]
        values: dict[str, list[float]] = {}
        for row in chosen:
            prefix = row["attack"].replace("-", "_")
            for field in OF_ATTACK:
                values.setdefault(f"{prefix}_{field}", []).append(row[field])
            if row["attack"] == chosen[0]["attack"]:
                for field in (each for each in OF_RELEASE if each in row):
                    values.setdefault(field, []).append(row[field])
        mean: Row = {"data": data, "release": release, "seeds": len(values["accuracy"])}
        for field, each in values.items():
            over_seeds = estimate(each)
            mean |= {field: over_seeds.mean, f"{field}_half_width": over_seeds.half_width}
        yield {**mean, "numerics": {k: v for row in chosen for k, v in row["numerics"].items()}}


def chart(data: str, means: Sequence[Row]) -> Chart:
    """Return the chart of a data set: people re-identified against error, by release and attacker.

    Args:
        data: Name of the data set.
        means: Records of means over seeds, of this data set.
    """
    by_release = {row["release"]: row for row in means}
    points = [
        Point(
            f"{release}, {attacker}",
            row[f"{attacker}_error"],
            100 * row[f"{attacker}_rank_1"],
            on=release.startswith("adversarial noise, .") and release != ANOTHER,
            label=SHORT.get(release, release),
            shape=shape,
        )
        for release, row in by_release.items()
        for attacker, shape in ATTACKERS.items()
        if f"{attacker}_error" in row
    ]
    levels = [
        Level(text, 100 * by_release[release]["kernel_ridge_rank_1"])
        for release, text in (("none", "clean scores"), ("label only", "the label alone"))
        if release in by_release
    ]
    most = max(point.up for point in points) * 1.15
    axes = (
        log_axis("mean squared error per pixel", (0.01, 0.02, 0.05, 0.1, 0.2, 0.5), WIDTH),
        Axis(
            "photographs named at rank 1, percent",
            [tick for tick in range(0, 101, 10) if tick < most],
            lambda percent: TOP + (HEIGHT - TOP - BOTTOM) * (1 - percent / most),
        ),
    )
    seeds = min(row["seeds"] for row in means)
    columns = {
        "release": Column(itemgetter("release")),
        **{
            f"{attacker} {value}": Column(methodcaller("get", f"{attacker}_{value}"), ".4f")
            for attacker in ATTACKERS
            for value in ("error", "rank_1")
        },
    }
    numbers = Listing(SETS[data].title, columns, list(by_release.values()))
    described = "; ".join(
        f"{point.name}: error {point.across:.4f}, {point.up:.1f} % named" for point in points
    )
    return plane_chart(
        data,
        f"{SETS[data].title}, {seeds} seed{'' if seeds == 1 else 's'}",
        f"{SETS[data].title}. {described}.",
        points,
        axes,
        lowest=0,
        levels=levels,
        numbers=numbers,
        legend=[
            Legend("diamond", "plain", "attacker who learned from clean scores (decoder)"),
            Legend("disc", "plain", "attacker who learns from the release (kernel ridge)"),
        ],
    )


def draw(path: Path, records: Sequence[Row]) -> None:
    """Draw the means over seeds of all data sets."""
    means = [row for row in records if "kernel_ridge_error" in row]
    charts = [
        chart(data, [row for row in means if row["data"] == data])
        for data in dict.fromkeys(row["data"] for row in means)
    ]
    write_charts(path, "The paper's noise, before attackers of yesterday and of today", charts)


def main() -> None:
    """Measure, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path(), help="folder of the .npz files")
    parser.add_argument("--data", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--release", nargs="+", default=None, help="default: all")
    parser.add_argument("--attack", nargs="+", choices=CHOICES, default=CHOICES[:-1])
    parser.add_argument("--network", action="store_true", help="judge by dlib's network, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    parser.add_argument("--picture", type=Path, default=None, help="picture of OUT, .svg")
    options = parser.parse_args()
    if options.picture is not None and options.out is None:
        parser.error("--picture is drawn from the records of --out: give both.")
    torch.set_num_threads(options.threads)
    attacks = [attack for name, attack in ATTACKS.items() if name in options.attack]
    place = origin()
    store, records = Store(options.cache), list[Row]()

    def keep(data: str, rows: Iterator[Row]) -> None:
        for row in rows:
            records.append({"data": data, **row, **place})
            told = {key: row[key] for key in PRINTED if key in row}
            print(data, *(f"{key} {value}" for key, value in told.items()), sep=", ", flush=True)
            if options.out is not None:
                means = [{**mean, **place} for mean in averages(records)]
                write_json_lines(options.out, [*records, *means])

    for data in options.data:
        for seed in options.seeds:
            stage = Stage(data, seed, options.data_root, store)
            names = options.release or SETS[data].releases
            keep(data, measure(stage, attacks, names, matching=Matching.name in options.attack))
            if options.network:
                keep(data, judged_by_network(stage, names))
    if options.picture is not None:
        draw(options.picture, read_json_lines(options.out))


if __name__ == "__main__":
    main()

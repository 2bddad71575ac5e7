"""What an attacker who knows more about a query gains from each release.

Two kinds of side knowledge. A second picture: of digits a moved copy of the query, of people
another photograph of the same person. And a narrowed set of candidates: M queries with the same
label, of which one was asked; the attacker asks the service about each candidate.

The attacker of the first kind is kernel ridge regression on released scores and the second picture
together, on one of them alone, or on the mean; a stronger attacker may exist. The attacker of the
second kind is optimal against exact candidates; with other pictures in the place of the candidates
it ranks them by the distance of their answers.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from presets import trained
from rich.console import Console
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d

from oneway.defenses import build_defense
from oneway.defenses.codebook import CodebookRelease, FitSettings
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.inversion import INPUT_TRANSFORMS
from oneway.metrics import expected_hits
from oneway.releases import guarded_release
from oneway.report.table import Column, Listing
from oneway.targets import TargetNetwork, TargetTrainingSettings, TorchTarget, train_target
from oneway.targets.augmentation import augment

RELEASES = ("none", "rounding, 2 decimals", "codebook, 20 members", "label alone")
GALLERIES = (10, 20)
PEOPLE, ATTACKER_PEOPLE = 40, 120
"""People whom the classifier knows, and others whose pictures the attacker has; the rest ask."""

ROWS, QUERIES = 1200, 600
"""Most rows that an attacker fits to, and most queries whose error is measured."""

CHOOSING = 400
"""Rows that choose scale, penalty and the weight of the second picture; as many others judge."""

COMPONENTS = 60
"""Principal components of a second picture."""

LENGTHS = (0.5, 1.0, 2.0)
PENALTIES = (0.03, 0.1, 0.3, 1.0)
WEIGHTS = (0.0, 0.2, 0.5, 0.8)
"""Weights of the squared distance of second pictures, beside that of scores."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Pictures:
    """Pictures that were asked about, with what else is known of each.

    Attributes:
        images: ``(N, 1, 32, 32)`` queries.
        seconds: ``(N, 1, 32, 32)`` the second picture of each.
        logits: ``(N, K)`` clean scores of the queries.
        second_logits: ``(N, K)`` clean scores of the second pictures.
    """

    images: Tensor
    seconds: Tensor
    logits: Tensor
    second_logits: Tensor

    @property
    def size(self) -> int:
        """Number of queries."""
        return len(self.images)


def digits(preset: str, cache: Path, seed: int) -> tuple[Pictures, Pictures]:
    """Return the attacker's digits and the queries, of a preset of the leaderboard."""
    target, splits = trained(preset, cache, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def pictures(images: Tensor) -> Pictures:
        seconds = augment(images, generator, flip=False)
        return Pictures(images, seconds, target.logits(images), target.logits(seconds))

    return pictures(splits.auxiliary_images), pictures(splits.test_images)


def people(path: Path, seed: int) -> tuple[Pictures, Pictures]:
    """Return the attacker's faces and the queries: of different people, unknown to the target."""
    arrays = np.load(path)
    whole = torch.from_numpy(arrays["images"]).float().div(255).unsqueeze(1)
    images, owners = avg_pool2d(whole, 2), torch.from_numpy(arrays["labels"])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(owners.max()) + 1, generator=generator)
    place = order.argsort()[owners]
    known = place < PEOPLE
    torch.manual_seed(seed)
    network = TargetNetwork(PEOPLE, images.shape[1:], width=16, blocks=3)
    settings = TargetTrainingSettings(
        epochs=24, label_smoothing=0.1, augmentation="moves-and-mirrors"
    )
    train_target(network, images[known], place[known], settings=settings, generator=generator)
    target = TorchTarget(network)

    def pictures(rows: Tensor) -> Pictures:
        numbers = rows.nonzero()[:, 0]
        numbers = numbers[torch.randperm(len(numbers), generator=generator)]
        seconds = torch.empty_like(numbers)
        for person in place[numbers].unique():
            own = (place[numbers] == person).nonzero()[:, 0]
            seconds[own] = numbers[own.roll(1)]
        logits = target.logits(images)
        return Pictures(images[numbers], images[seconds], logits[numbers], logits[seconds])

    last = PEOPLE + ATTACKER_PEOPLE
    return pictures((place >= PEOPLE) & (place < last)), pictures(place >= last)


def released(own: Pictures, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield each release; those with a table are fitted to the attacker's rows."""
    generator = torch.Generator().manual_seed(seed)
    yield "none", build_defense("none", {}, None)
    yield "rounding, 2 decimals", build_defense("rounding", {"decimals": 2}, None)
    for name, weight in (("codebook, 20 members", 0.01), ("label alone", float("inf"))):
        settings = FitSettings(min_members=20, rate_weight=weight)
        yield name, CodebookRelease.fit(own.logits, generator=generator, settings=settings)


def answers(defense: Any, logits: Tensor) -> Tensor:
    """Return ``(N, K)`` float64 confidences that clients see."""
    return guarded_release(defense, logits, dtype=torch.float64).confidences


class Regression:
    """Kernel ridge regression on up to two kinds of features, with their distances mixed."""

    def __init__(self, parts: Sequence[Tensor], images: Tensor) -> None:
        """Choose weight, length scale and penalty on held-out rows, and fit.

        Args:
            parts: ``(N, F)`` float64 features of each kind.
            images: ``(N, D)`` what they belong to.
        """
        self.parts, self.mean = parts, images.double().mean(0)
        truth = images.double() - self.mean
        few = slice(0, min(CHOOSING, len(images) // 2))
        judges = slice(few.stop, 2 * few.stop)
        self.units = [_median(torch.cdist(part[few], part[few])) for part in parts]
        among = self._squared([part[few] for part in parts], few)
        across = self._squared([part[judges] for part in parts], few)
        weights = [(1 - one, one) for one in WEIGHTS] if len(parts) == 2 else [(1.0,)]
        best = float("inf")
        for mix, length in itertools.product(weights, LENGTHS):
            gram, cross = (_kernel(each, mix, length) for each in (among, across))
            values, vectors = torch.linalg.eigh(gram)
            aimed, asked = vectors.mT @ truth[few], cross @ vectors
            for penalty in PENALTIES:
                guess = asked @ (aimed / (values + penalty).unsqueeze(-1))
                error = float((guess - truth[judges]).square().mean())
                if error < best:
                    best, self.choice = error, (mix, length, penalty)
        mix, length, penalty = self.choice
        gram = _kernel(self._squared(parts, slice(None)), mix, length)
        gram.diagonal().add_(penalty)
        self.weights = torch.cholesky_solve(truth, torch.linalg.cholesky(gram))

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """Map features to ``(N, D)`` reconstructions."""
        mix, length, _ = self.choice
        kernel = _kernel(self._squared(parts, slice(None)), mix, length)
        return (self.mean + kernel @ self.weights).clamp(0, 1)

    def _squared(self, parts: Sequence[Tensor], rows: slice) -> list[Tensor]:
        pairs = zip(parts, self.parts, self.units, strict=True)
        return [(torch.cdist(asked, own[rows]) / unit).square() for asked, own, unit in pairs]


def _kernel(squared: Sequence[Tensor], mix: Sequence[float], length: float) -> Tensor:
    total = sum((share * each for share, each in zip(mix, squared, strict=True)), torch.zeros(()))
    return (total.sqrt() / length).neg().exp()


def _median(distances: Tensor) -> float:
    apart = distances[distances > 0]
    return float(apart.median()) if len(apart) else 1.0


def errors(own: Pictures, asked: Pictures, releases: dict[str, tuple[Tensor, Tensor]]) -> Row:
    """Return the error of each kind of knowledge, by release and kind."""
    rows, queries = slice(0, min(ROWS, own.size)), slice(0, min(QUERIES, asked.size))
    flat, truth = own.images[rows].flatten(1), asked.images[queries].flatten(1).double()
    seconds = own.seconds[rows].flatten(1).double()
    center = seconds.mean(0)
    basis = torch.linalg.svd(seconds - center, full_matrices=False).Vh[:COMPONENTS].mT
    pictures = [(seconds - center) @ basis]
    shown = [(asked.seconds[queries].flatten(1).double() - center) @ basis]

    def error(known: list[Tensor], given: list[Tensor]) -> float:
        return float((Regression(known, flat)(given) - truth).square().mean())

    mean = flat.double().mean(0)
    found: Row = {
        "mean": float((truth - mean).square().mean()),
        "picture": error(pictures, shown),
    }
    for name, (ours, theirs) in releases.items():
        transform = INPUT_TRANSFORMS["standardized"](ours.shape[-1])
        transform.fit(ours[rows])
        features = [transform(part).double() for part in (ours[rows], theirs[queries])]
        found[name] = error(features[:1], features[1:])
        found[f"{name} and picture"] = error(features[:1] + pictures, features[1:] + shown)
    return found


def identified(
    released: Tensor, candidates: Tensor, labels: Tensor, size: int, generator: Generator
) -> tuple[float, int]:
    """Return the share of queries that are named among candidates of the same label.

    Args:
        released: ``(N, K)`` answers about the queries.
        candidates: ``(N, K)`` answers about the candidate of each.
        labels: ``(N)`` labels of the queries.
        size: Candidates in a gallery.
        generator: Draws the galleries.

    Returns:
        The share, and of how many queries.
    """
    hits = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < size:
            continue
        for row in rows.tolist():
            others = rows[rows != row]
            drawn = others[torch.randperm(len(others), generator=generator)[: size - 1]]
            distances = torch.cdist(
                released[row : row + 1], candidates[torch.cat([rows.new_tensor([row]), drawn])], p=1
            )
            hits.append(expected_hits(distances, torch.zeros(1, dtype=torch.int64)))
    return (float(torch.cat(hits).mean()), len(hits)) if hits else (float("nan"), 0)


def measure(name: str, own: Pictures, asked: Pictures, seed: int) -> Iterator[Row]:
    """Yield a record for each release."""
    guards = dict(released(own, seed))
    shown = {
        release: (answers(guard, own.logits), answers(guard, asked.logits))
        for release, guard in guards.items()
    }
    found, labels = errors(own, asked, shown), asked.logits.argmax(-1)
    for release, guard in guards.items():
        row: Row = {"data": name, "release": release, "seed": seed, "rows": min(ROWS, own.size)}
        row |= {"queries": min(QUERIES, asked.size)}
        row |= {"error_mean_query": found["mean"], "error_second_picture": found["picture"]}
        row |= {"error_release": found[release], "error_both": found[f"{release} and picture"]}
        answered = shown[release][1], answers(guard, asked.second_logits)
        for size, (kind, candidates) in itertools.product(
            GALLERIES, zip(("queries", "second pictures"), answered, strict=True)
        ):
            generator = torch.Generator().manual_seed(seed + size)
            share, count = identified(answered[0], candidates, labels, size, generator)
            field = f"identified_of_{size}_{kind.replace(' ', '_')}"
            row |= {field: share, f"asked_of_{size}": count}
        yield row


def listing(records: Sequence[Row]) -> Listing:
    """Return errors and shares by data and release."""
    columns = {
        "data": Column(lambda row: row["data"]),
        "release": Column(lambda row: row["release"]),
    }
    for name in ("mean query", "second picture", "release", "both"):
        key = f"error_{name.replace(' ', '_')}"
        columns[key] = Column(lambda row, key=key: row[key], ".4f")  # type: ignore[misc]
    for size, kind in itertools.product(GALLERIES, ("queries", "second pictures")):
        key = f"identified_of_{size}_{kind.replace(' ', '_')}"
        columns[f"named of {size} {kind}, %"] = Column(
            lambda row, key=key: 100 * row[key],  # type: ignore[misc]
            ".1f",
        )
    return Listing("Errors by what is known, and shares of queries named", columns, records)


def main() -> None:
    """Measure, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed"])
    parser.add_argument("--people", type=Path, default=None, help="celeba_ids250_grey64.npz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = origin()
    drawn = {name: (digits, (name, options.cache, options.seed)) for name in options.data}
    if options.people is not None:
        drawn["people"] = people, (options.people, options.seed)  # type: ignore[assignment]
    records = list[Row]()
    for name, (make, arguments) in drawn.items():
        records += measure(name, *make(*arguments), options.seed)
        Console(width=160).print(listing(records), crop=False)
        if options.out is not None:
            write_json_lines(options.out, [{**record, **place} for record in records])


if __name__ == "__main__":
    main()

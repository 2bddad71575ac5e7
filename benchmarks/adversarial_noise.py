"""Time the defense beside plain PyTorch renderings of the paper's listing, in one run.

The fair rendering has frozen parameters; the other one computes their gradients, too, which nobody
needs. All get the same surrogate, scores and images: scikit-learn's digits, and a surrogate trained
on them for a short time. The exact defense must release the same confidences. Times are of the
process's CPU where the defense runs on one. Run it with `make bench`.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from oneway import AdversarialNoise, Inverter, TorchTarget
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.inversion import full_depth
from oneway.targets import TARGET_PRESETS, TargetNetwork

STEP_SIZE, STEPS, MARGIN = 0.1, 10, 1e-3
BATCHES = (1, 64, 512)


class PlainInverter(nn.Module):
    """The inverter as Yang et al. print it: stock layers, the transform on confidences."""

    def __init__(self, inverter: Inverter) -> None:
        """Take over the weights of ``inverter``."""
        super().__init__()
        first, unflatten, *rest = inverter.layers.children()
        assert isinstance(first, nn.Linear)
        assert isinstance(unflatten, nn.Unflatten)
        channels, rows, columns = unflatten.unflattened_size
        spread = nn.ConvTranspose2d(first.in_features, channels, (rows, columns), bias=False)
        # The linear layer has a bias per number where this has one per channel: compare without.
        nn.init.zeros_(first.bias)
        spread.weight.data = first.weight.data.T.reshape(spread.weight.shape).clone()
        layers: list[nn.Module] = [spread]
        for layer in rest:
            if isinstance(layer, nn.ConvTranspose2d):
                stock = nn.ConvTranspose2d(
                    layer.in_channels, layer.out_channels, 4, stride=2, padding=1
                )
                stock.load_state_dict(layer.state_dict())
                layers.append(stock)
            else:
                layers.append(layer)
        self.layers = nn.Sequential(*layers)

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, C, H, W)`` images."""
        features = torch.clamp(torch.log(confidences), min=-1000) + 50
        features = features + torch.relu(-features.min(1, keepdim=True)[0])
        images: Tensor = self.layers(features[:, :, None, None])
        return images


def plain_defense(inverter: nn.Module, logits: Tensor, images: Tensor) -> Tensor:
    """Algorithm 2 line by line, per sample, with the strict margin; unbounded budget."""
    clean = logits
    current = logits.clone()
    label = clean.argmax(1, keepdim=True)
    for _ in range(STEPS):
        current = current.detach().requires_grad_()
        reconstructions = inverter(torch.softmax(current, 1))
        loss = nn.functional.mse_loss(reconstructions, images)
        loss.backward()
        assert current.grad is not None
        with torch.no_grad():
            stepped = current + STEP_SIZE * torch.sign(current.grad)
            rival = stepped.scatter(1, label, -math.inf).max(1, keepdim=True)[0]
            modifier = torch.relu(rival + MARGIN - stepped.gather(1, label))
            stepped = stepped.scatter_add(1, label, modifier)
            noise = stepped - clean
            current = clean + noise
    return torch.softmax(current, 1)


def digits(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return logits of a logistic regression, and 1,797 digits of 32x32 pixels."""
    pixels, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=300).fit(pixels[:600] / 16, labels[:600])
    logits = torch.from_numpy(model.decision_function(pixels / 16)).float()
    small = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)
    images = nn.functional.interpolate(small, size=(32, 32), mode="bilinear")
    return logits.to(device), images.to(device)


def train(surrogate: Inverter, logits: Tensor, images: Tensor, steps: int) -> None:
    """Train for a short time; the first bias stays 0, see ``PlainInverter``."""
    first = surrogate.layers[0]
    assert isinstance(first, nn.Linear)
    nn.init.zeros_(first.bias).requires_grad_(False)
    learned = [parameter for parameter in surrogate.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(logits), (32,))
        optimizer.zero_grad()
        nn.functional.mse_loss(surrogate(logits[rows].softmax(1)), images[rows]).backward()
        optimizer.step()
    surrogate.eval()


def alternating_times(
    jobs: dict[str, Callable[[], object]], seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return each job's times in milliseconds; jobs take turns, at least twice."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    begin, rounds = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds or rounds < 2:
        rounds += 1
        for name, job in jobs.items():
            start = clock()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(1000 * (clock() - start))
    return times


def peak_flops(device: torch.device) -> float:
    """Return the most floating-point operations a second of five matrix products of side 1024."""
    matrix, best = torch.randn(1024, 1024, device=device), math.inf
    for _ in range(5):
        start = time.process_time()
        torch.mm(matrix, matrix)
        best = min(best, time.process_time() - start)
    return 2 * 1024**3 / best


def convolution_flops(surrogate: Inverter) -> int:
    """Return operations of a row's transposed convolutions, forward and back, in all steps."""
    _, height, across = surrogate.shape
    doublings = [layer for layer in surrogate.layers if isinstance(layer, nn.ConvTranspose2d)]
    pixels = [height * across // 4**depth for depth in range(len(doublings), 0, -1)]
    per_pass: int = sum(
        2 * layer.weight.numel() * count for layer, count in zip(doublings, pixels, strict=True)
    )
    return 2 * STEPS * per_pass


def surrogate_error(inverter: nn.Module, released: Tensor, images: Tensor) -> float:
    """Return the mean squared error of what the inverter makes of released logits."""
    with torch.no_grad():
        return float(nn.functional.mse_loss(inverter(released.softmax(1)), images))


def measure(
    width: int, hidden_layers: int, options: argparse.Namespace, batches: tuple[int, ...]
) -> list[dict[str, object]]:
    """Compare all on one surrogate; return one record per batch size."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    logits, images = digits(device)
    surrogate, static = (
        Inverter(10, (1, 32, 32), width=wide, hidden_layers=deep).to(device)
        for wide, deep in ((width, hidden_layers), (32, 1))
    )
    for inverter in (surrogate, static):
        train(inverter, logits[600:1200], images[600:1200], options.training_steps)
    frozen = PlainInverter(surrogate).eval().to(device)
    plain = copy.deepcopy(frozen).requires_grad_(True)
    frozen.requires_grad_(False)
    guard = partial(AdversarialNoise, surrogate, step_size=STEP_SIZE, steps=STEPS, margin=MARGIN)
    exact, coarse = guard(), {few: guard(coarse_steps=few) for few in (1, 2)}
    preset = TARGET_PRESETS["small"]
    network = TargetNetwork(10, (1, 32, 32), width=preset.width, blocks=preset.blocks).to(device)
    target = TorchTarget(network)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    records: list[dict[str, object]] = []
    for batch in batches:
        scores, queries = logits[1200 : 1200 + batch], images[1200 : 1200 + batch]
        jobs: dict[str, Callable[[], object]] = {
            "oneway": partial(exact, scores, queries),
            "frozen": partial(plain_defense, frozen, scores, queries),
            "plain": partial(plain_defense, plain, scores, queries),
            "coarse_1": partial(coarse[1], scores, queries),
            "coarse_2": partial(coarse[2], scores, queries),
            "bare_target": partial(target, queries),
        }
        times = alternating_times(jobs, options.seconds, clock)
        medians = {name: statistics.median(found) for name, found in times.items()}
        released = exact(scores, queries)
        expected = plain_defense(plain, scores, queries)
        same = (released.softmax(1) - expected).abs().amax(1) < 1e-4
        speed = convolution_flops(surrogate) * batch / (medians["oneway"] / 1000)
        record: dict[str, object] = {
            "surrogate": f"width {width}, {hidden_layers} hidden",
            "batch": batch,
            "same_releases": f"{int(same.sum())}/{batch}",
            **{f"{name}_ms": value for name, value in medians.items()},
            **{
                f"frozen_over_{name}": medians["frozen"] / medians[name]
                for name in ("oneway", "coarse_1", "coarse_2")
            },
            "plain_over_oneway": medians["plain"] / medians["oneway"],
            "oneway_over_bare_target": medians["oneway"] / medians["bare_target"],
            "share_of_peak": speed / peak_flops(device) if device.type == "cpu" else None,
            "surrogate_error": surrogate_error(surrogate, released, queries),
            "static_error": surrogate_error(static, released, queries),
            "l1": float((released.softmax(1) - scores.softmax(1)).abs().sum(1).mean()),
        }
        for few, approximate in coarse.items():
            answer = approximate(scores, queries)
            equal = (answer - scores).sign() == (released - scores).sign()
            record |= {
                f"coarse_{few}_equal_signs": float(equal.float().mean()),
                f"coarse_{few}_surrogate_error": surrogate_error(surrogate, answer, queries),
                f"coarse_{few}_static_error": surrogate_error(static, answer, queries),
                f"coarse_{few}_l1": float(
                    (answer.softmax(1) - scores.softmax(1)).abs().sum(1).mean()
                ),
            }
        records.append(record)
    return records


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="per comparison")
    parser.add_argument("--training-steps", type=int, default=150, help="of each surrogate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="also write records as JSON Lines")
    options = parser.parse_args()
    device = torch.device(options.device)
    deep = full_depth(32, 32)
    facts = origin(device=device)
    records: list[dict[str, object]] = []
    for width, layers in ((32, deep - 2), (128, deep - 2), (32, deep), (128, deep)):
        # More rows than this take a minute a round in the larger ones.
        batches = BATCHES if (width, layers) == (32, deep - 2) else BATCHES[:2]
        records += measure(width, layers, options, batches)
        if options.out is not None:
            write_json_lines(options.out, [{**record, **facts} for record in records])
    shown = [name for name in records[0] if "coarse" not in name or "over" in name]
    table = Table(title=f"{STEPS} steps, times in ms, medians; torch {torch.__version__}")
    for column in shown:
        table.add_column(column.replace("_", " "), justify="right", overflow="fold")
    for record in records:
        values = [record[name] for name in shown]
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values))
    Console().print(table)


if __name__ == "__main__":
    main()

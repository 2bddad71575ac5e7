"""Time the defense beside a plain PyTorch rendering of the paper's listing, in one run.

Both get the same trained-shape surrogate, the same scores and images, and must release the same
confidences. Run it with `make bench`; on a busy machine the ratios hold better than the times.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from oneway import AdversarialNoise, DefendedTarget, Inverter, TorchTarget
from oneway.evaluation.records import environment, source_commit
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


def paired_times(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float
) -> tuple[float, float, float]:
    """Return both medians in milliseconds, and the median ratio of neighbouring runs."""
    ours(), theirs()
    pairs: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(pairs) < 3:
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        pairs.append((middle - start, time.perf_counter() - middle))
    fast = statistics.median(pair[0] for pair in pairs)
    slow = statistics.median(pair[1] for pair in pairs)
    return 1000 * fast, 1000 * slow, statistics.median(pair[1] / pair[0] for pair in pairs)


def measure(
    title: str, hidden_layers: int, seconds: float, device: torch.device
) -> list[dict[str, object]]:
    """Compare both on one surrogate; return one record per batch size."""
    torch.manual_seed(0)
    surrogate = Inverter(10, (1, 32, 32), hidden_layers=hidden_layers)
    plain = PlainInverter(surrogate)
    with torch.no_grad():  # give BatchNorm statistics that folding must carry over
        for _ in range(30):
            plain.train()(torch.softmax(4 * torch.randn(64, 10), 1))
    plain, surrogate = plain.eval().to(device), surrogate.eval().to(device)
    preset = TARGET_PRESETS["small"]
    network = TargetNetwork(10, (1, 32, 32), width=preset.width, blocks=preset.blocks).to(device)
    target = TorchTarget(network)
    defense = AdversarialNoise(surrogate, step_size=STEP_SIZE, steps=STEPS, margin=MARGIN)
    guarded = DefendedTarget(target, defense)
    records: list[dict[str, object]] = []
    for batch in BATCHES:
        logits = 5 * torch.randn(batch, 10, device=device)
        images = torch.rand(batch, 1, 32, 32, device=device)
        released = defense(logits, images).softmax(1)
        expected = plain_defense(plain, logits, images)
        same = (released - expected).abs().amax(1) < 1e-4
        fast, slow, ratio = paired_times(
            partial(defense, logits, images),
            partial(plain_defense, plain, logits, images),
            seconds,
        )
        guard, bare, overhead = paired_times(
            partial(guarded, images), partial(target, images), seconds / 2
        )
        records.append(
            {
                "surrogate": title,
                "batch": batch,
                "same_releases": f"{int(same.sum())}/{batch}",
                "oneway_ms": fast,
                "plain_ms": slow,
                "plain_over_oneway": ratio,
                "guarded_ms": guard,
                "bare_target_ms": bare,
                "guarded_over_bare": 1 / overhead,
            }
        )
    return records


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="per comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="also write records as JSON Lines")
    options = parser.parse_args()
    device = torch.device(options.device)
    deep = full_depth(32, 32)
    records = measure(f"paper's: {deep - 2} hidden layer", deep - 2, options.seconds, device)
    records += measure(f"full depth: {deep} hidden layers", deep, options.seconds, device)
    table = Table(title=f"{STEPS} steps, times in ms, medians; torch {torch.__version__}")
    for column in records[0]:
        table.add_column(column.replace("_", " "), justify="right", overflow="fold")
    for record in records:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in record.values()))
    Console().print(table)
    if options.out is not None:
        facts = {"environment": asdict(environment(device)), "commit": source_commit()}
        write_json_lines(options.out, [{**record, **facts} for record in records])


if __name__ == "__main__":
    main()

r"""A model that oneway did not train: LeNet-5 on 5,000 digits, exported, with data to audit it.

    python examples/lenet.py work
    oneway codebook work/lenet.pt2 --outputs logits --queries work/queries.npz \
        --out work/guard.safetensors
    oneway audit work/lenet.pt2 --outputs logits --attacker-data work/auxiliary.npz \
        --queries work/test.npz --guard work/guard.safetensors --minutes 40

The first takes about 20 seconds on a CPU; what the last prints is in the README.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from oneway.data import load_dataset


def lenet() -> nn.Sequential:
    """Return LeNet-5 (LeCun et al., 1998) for 28x28 images, with ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def main(folder: Path, epochs: int = 20) -> None:
    """Train, export, and write the attacker's images, the operator's queries and test queries."""
    torch.manual_seed(0)
    digits = load_dataset("digits")
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 255
    classes = torch.from_numpy(digits.labels)
    private, auxiliary, queries, test = torch.randperm(len(images)).split([1800, 1900, 700, 600])
    model = lenet()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in private[torch.randperm(len(private))].split(50):
            optimizer.zero_grad()
            loss(model(images[rows]), classes[rows]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model(images[test]).argmax(-1) == classes[test]).float().mean()
    folder.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "lenet.pt2")
    for name, rows in (("auxiliary", auxiliary), ("queries", queries), ("test", test)):
        pixels_of = (images[rows] * 255).round().byte().numpy()
        np.savez(folder / f"{name}.npz", images=pixels_of, labels=classes[rows].numpy())
    print(f"wrote {folder}/lenet.pt2 (accuracy {right:.3f}), auxiliary.npz, queries.npz, test.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "work"))

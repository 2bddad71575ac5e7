"""Guard a PyTorch module by the paper's noise, with a surrogate inverter trained on own images.

python examples/guarded_module.py
"""

import torch
from torch import nn

import oneway
from oneway.adapters import GuardedModule


def main() -> None:
    """Train the surrogate, and answer a batch and one of its queries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)).eval()  # your classifier
    own_images = torch.rand(256, 1, 32, 32)  # images like those it will be asked about

    target = oneway.TorchTarget(model)
    surrogate = oneway.Inverter(num_classes=10, image_shape=(1, 32, 32), hidden_layers=1)
    seed = torch.Generator().manual_seed(0)
    oneway.train_inverter(surrogate, target(own_images), own_images, generator=seed)
    defense = oneway.AdversarialNoise(surrogate, step_size=0.1, budget=5.0, norm=1)
    guarded = GuardedModule(model, defense, outputs="logits", decimals=4)

    with torch.inference_mode():
        released = guarded(own_images[:8])
        clean = model(own_images[:8])
    print("labels kept:", bool((released.argmax(-1) == clean.argmax(-1)).all()))
    print("largest change:", round(float((released - clean.softmax(-1)).abs().max()), 3))


if __name__ == "__main__":
    main()

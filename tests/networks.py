"""Small networks with statistics of their own, and what it means that two are the same."""

import torch

from oneway.inversion import Inverter
from oneway.targets import TargetNetwork


def inverter(seed=0):
    torch.manual_seed(seed)
    network = Inverter(3, (1, 8, 8), width=4, input_transform="standardized")
    network.train()(torch.rand(6, 3).softmax(-1))  # BatchNorm statistics of its own
    network.fit_input_transform(torch.rand(20, 3).softmax(-1))
    return network


def target(seed=0):
    torch.manual_seed(seed)
    network = TargetNetwork(3, (1, 8, 8), width=4, blocks=2, dropout=0.25)
    network.train()(torch.rand(6, 1, 8, 8))
    return network


def same_bits(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name])
        for name, value in one.items()
    )

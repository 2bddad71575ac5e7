"""A page on this machine: draw a digit, move a defense's sliders, see the reconstructions."""

from oneway.playground.networks import (
    load_networks,
    networks_file,
    networks_key,
    train_networks,
)
from oneway.playground.running import Server, listen
from oneway.playground.session import Session
from oneway.playground.worker import Worker

__all__ = [
    "Server",
    "Session",
    "Worker",
    "listen",
    "load_networks",
    "networks_file",
    "networks_key",
    "train_networks",
]

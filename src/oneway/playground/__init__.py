"""A page on this machine: draw a digit, move a defense's sliders, see what attackers see."""

from oneway.playground.app import playground_app
from oneway.playground.running import Server, listen
from oneway.playground.settings import Setting
from oneway.playground.study import Study, count_stages, kept_digits
from oneway.playground.workshop import Workshop

__all__ = [
    "Server",
    "Setting",
    "Study",
    "Workshop",
    "count_stages",
    "kept_digits",
    "listen",
    "playground_app",
]

"""A page on this machine: draw a digit, move a defense's sliders, see the reconstructions."""

from oneway.playground.running import Server, listen
from oneway.playground.session import Session, count_stages
from oneway.playground.worker import Worker

__all__ = ["Server", "Session", "Worker", "count_stages", "listen"]

"""A session whose scores, pictures and findings are constructed: the same on every processor."""

import threading
from types import MappingProxyType, SimpleNamespace

import torch

from oneway.contracts import Reconstructor
from oneway.playground.session import Finding
from oneway.playground.settings import DEFAULTS, SLIDERS, Setting
from oneway.releases import release

PATIENCE = 600
"""Seconds after which a wait counts as a hang; tests wait for conditions, however long it takes."""

CLOSED_GAPS = {
    "none": 0.0,
    "rounding": 0.64,
    "adversarial-noise": -0.19,
    "codebook": 0.99,
    "label-only": 1.0,
}


def default_setting(defense):
    return Setting.of(defense, DEFAULTS[defense])


def templates():
    """Return ``(10, 1, 32, 32)`` digits: 1 is a vertical bar, the others are horizontal ones."""
    digits = torch.zeros(10, 1, 32, 32)
    for digit in range(10):
        digits[digit, 0, 3 + 2 * digit : 8 + 2 * digit, 4:28] = 1
    digits[1] = 0
    digits[1, 0, 6:26, 14:18] = 1
    return digits


class PlantedSession:
    """What the page shows of a session, with nothing trained.

    ``proceed`` is set; while a test clears it, no examination comes to its end.
    """

    queries = 150
    baseline_errors = MappingProxyType({"clean": 0.0212, "label": 0.0505, "prior": 0.0707})

    def __init__(self):
        digits = templates()
        self.target = SimpleNamespace(logits=self._logits)
        self._units = torch.nn.functional.normalize(digits.flatten(1))
        self.samples = torch.cat([digits, (digits[:6] + digits[2:8]) / 2])
        self.sample_labels = torch.arange(16) % 10
        decode = Reconstructor(lambda answers: torch.einsum("nk,kchw->nchw", answers[0], digits))
        labels = Reconstructor(lambda answers: digits[answers[0].argmax(-1)])
        self.static, self.label_alone = (SimpleNamespace(reconstructor=r) for r in (decode, labels))
        self.mixed = {name: decode for name, sliders in SLIDERS.items() if sliders}
        self.decode, self.proceed = decode, threading.Event()
        self.proceed.set()

    def _logits(self, images):
        return 10 * torch.nn.functional.normalize(images.flatten(1)) @ self._units.T

    def trained_for(self, setting):
        known = {"none": self.static, "label-only": self.label_alone}.get(setting.defense)
        return None if known is None else known.reconstructor

    def trace(self, setting, images):
        """Keep the label, and give each slider's position as the score of another class."""
        clean = release(self.target.logits(images))
        if setting.defense == "none":
            return SimpleNamespace(released=clean)
        label = clean.argmax(-1)
        released = torch.full_like(clean, 0.01)
        rows = torch.arange(len(images))
        for number, (name, value) in enumerate(setting.options):
            positions = SLIDERS[setting.defense][name]
            share = positions.index(value) / (len(positions) - 1)
            released[rows, (label + 1 + number) % 10] = 0.01 + 0.1 * share
        released[rows, label] = 0
        released[rows, label] = 1 - released.sum(-1)
        return SimpleNamespace(released=released)

    def cells(self, setting):
        return 77 if setting.defense == "codebook" else None

    def examine(self, setting, report):
        report("release", 0.5)
        gap = CLOSED_GAPS[setting.defense]
        clean, label = self.baseline_errors["clean"], self.baseline_errors["label"]
        errors = {"label-only": label, "static": label + 0.01}
        yield Finding(
            SimpleNamespace(
                closed_gap=1.0, strongest="label-only", adaptive_error=label, attack_failed=True
            ),
            errors,
        )
        assert self.proceed.wait(PATIENCE)
        report("train", 0.5)
        error = clean + gap * (label - clean)
        verdict = SimpleNamespace(
            closed_gap=gap, strongest="retrained", adaptive_error=error, attack_failed=gap >= 1
        )
        yield Finding(verdict, {**errors, "retrained": error}, self.decode)

"""Does the traffic still look as certified? A server counts the cells of its answers.

The state lies in a file of its own for each certificate and port: counts of cells, for the
operator alone.
"""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oneway.defenses import ServableDefense
from oneway.defenses.codebook import Certificate, CodebookRelease, Drift, DriftTest
from oneway.defenses.codebook.release import MALFORMED
from oneway.errors import InvalidOptionError
from oneway.files import atomic_file, corrupt
from oneway.serving.settings import ServingSettings

COUNTED_TOGETHER = 16
"""Rows that are counted at once: to look up cells one by one takes as long as the guard itself."""

SAVE_SECONDS = 1.0
"""Least time between two writes of the state while the server answers."""

log = logging.getLogger("oneway.serving")


class TrafficWatch:
    """Counts the cells of a codebook's answers, says once when their shares have changed.

    Attributes:
        test: The test.
    """

    def __init__(self, guard: CodebookRelease, test: DriftTest, state: Path | None) -> None:
        """Go on from a state, or begin.

        Args:
            guard: The codebook.
            test: A new test.
            state: File of the state; None: it is lost when the server ends.

        Raises:
            CorruptDataError: The file is something else.
        """
        self.guard, self.test, self.state = guard, test, state
        self._saved = time.monotonic()
        self._waiting, self._rows = list[Tensor](), 0
        if state is not None and state.is_file():
            try:
                test.resume(json.loads(state.read_text(encoding="utf-8")))
            except (OSError, RecursionError, *MALFORMED) as error:
                remedy = "Move it away, and the server begins a new test."
                raise corrupt(state, "state of a drift test", remedy, error) from error
        if test.drift is not None:
            self._tell(test.drift)

    def see(self, clean: Tensor) -> None:
        """Count answers, soon: once there are ``COUNTED_TOGETHER`` of them.

        Args:
            clean: ``(N, K)`` clean scores that were answered.
        """
        self._waiting.append(clean)
        self._rows += clean.shape[0]
        if self._rows >= COUNTED_TOGETHER and (
            self._count() or time.monotonic() > self._saved + SAVE_SECONDS
        ):
            self.save()

    def _count(self) -> bool:
        """Count what waits, and say whether it shows drift."""
        if not self._waiting:
            return False
        clean, self._waiting, self._rows = torch.cat(self._waiting), [], 0
        drift = self.test.see(self.guard.state(clean))
        if drift is not None:
            self._tell(drift)
        return drift is not None

    def save(self) -> None:
        """Count what waits, and write the state, if there is a file for it; log an error."""
        self._count()
        self._saved = time.monotonic()
        if self.state is None:
            return
        try:
            with atomic_file(self.state) as path:
                path.write_text(json.dumps(self.test.as_json()), encoding="utf-8")
        except OSError as error:
            log.error("drift_state_not_written", extra={"facts": {"error": type(error).__name__}})

    def _tell(self, drift: Drift) -> None:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(drift.since))
        log.warning("drift_seen", extra={"facts": {"since": since, "answers": drift.answers}})


def watch_traffic(guard: ServableDefense, settings: ServingSettings) -> TrafficWatch | None:
    """Return what watches the answers of a guard; None, and a line in the log, if it cannot be.

    Raises:
        InvalidOptionError: The settings want a stop on drift, which cannot be seen.
        CorruptDataError: The file of the state is something else.
    """
    try:
        if not settings.watch_drift:
            raise InvalidOptionError("the setting watch_drift is false.")
        release = guard.defense
        if not isinstance(release, CodebookRelease) or release.certificate is None:
            raise InvalidOptionError("only a codebook with a certificate has cells to count.")
        test = DriftTest.of(release.certificate, risk=settings.drift_risk)
    except InvalidOptionError as error:
        if settings.stop_on_drift:
            raise InvalidOptionError(f"stop_on_drift cannot be kept: {error}") from None
        if guard.name == "codebook":
            log.warning("drift_not_watched", extra={"facts": {"because": str(error)}})
        return None
    state = None
    if settings.drift_folder is not None:
        name = f"drift-{_identity(release.certificate)}-{settings.port}.json"
        state = settings.drift_folder / name
    facts = {"certified_queries": release.certificate.queries, "state_kept": state is not None}
    log.info("drift_watched", extra={"facts": facts})
    return TrafficWatch(release, test, state)


def _identity(certificate: Certificate) -> str:
    """Return what tells a table and its certified counts from others."""
    told: tuple[Any, ...] = certificate.table, certificate.traffic.cells
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

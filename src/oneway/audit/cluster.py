"""An audit spread over a Ray cluster: each of its tasks keeps the networks that it trains."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from oneway.audit.audit_target import AuditTarget
from oneway.audit.model_audit import Executor
from oneway.audit.settings import AuditSettings
from oneway.audit.tasks import AuditContext, AuditTasks, TaskResult
from oneway.checks import check_count
from oneway.data import ProgressCallback, no_progress
from oneway.errors import OnewayError
from oneway.evaluation.cluster import RETRIES, run_tasks
from oneway.evaluation.store import Store


@dataclass(frozen=True)
class AuditJob:
    """An audit whose parts may run elsewhere.

    Attributes:
        audited: Opens the model and loads the data, on whichever machine runs a part. It is sent
            there by value: a function of an installed module, or a partial of one.
        store: Where trained networks are kept; as in :class:`CellsJob`.
        settings: Settings of the audit.
        seed: The first of the seeds.
        device: Device for training and queries.
        report: Progress callback, in the process that runs a task.
    """

    audited: Callable[[], AuditTarget]
    store: Store
    settings: AuditSettings
    seed: int
    device: torch.device
    report: ProgressCallback = no_progress

    def run(self, part: str, context: AuditContext) -> TaskResult:
        """Run one part of the audit."""
        parts = AuditTasks(self.audited(), self.store, self.settings, self.seed, self.report)
        return parts.run(part, context)


def audit_on_ray(
    job: AuditJob, *, retries: int = RETRIES, finished: Callable[[str], None] | None = None
) -> Executor:
    """Return what runs the parts of an audit as tasks of a Ray cluster, for ``ModelAudit.run``.

    The cluster is that of :func:`run_on_ray`. All parts run at once, so that no seed is left out
    for lack of time; the plan is that of one machine.

    Args:
        job: The audit.
        retries: How often a task is tried again when its process or machine is lost.
        finished: Told of each part that is done.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidOptionError: ``retries`` is below 0.
    """
    check_count("retries", retries, least=0)
    sent = dataclasses.replace(job, store=Store(job.store.root.resolve()))

    def executor(context: AuditContext, parts: Sequence[str]) -> Iterator[TaskResult | OnewayError]:
        tasks = [partial(sent.run, part, context) for part in parts]
        found = dict[int, TaskResult | OnewayError]()
        given = 0
        for number, one in run_tasks(tasks, [job.device] * len(parts), retries):
            found[number] = one
            if finished is not None:
                finished(parts[number])
            while given in found:
                yield found.pop(given)
                given += 1

    return executor

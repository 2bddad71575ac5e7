"""An audit on a Ray cluster, where each task keeps the networks that it trains."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from oneway.auditing.audit_target import AuditTarget
from oneway.auditing.model_audit import Executor
from oneway.auditing.settings import AuditSettings
from oneway.auditing.tasks import AuditContext, AuditTasks, TaskResult
from oneway.checks import check_count
from oneway.data import ProgressCallback, no_progress
from oneway.errors import OnewayError
from oneway.evaluation.cluster import RETRIES, run_tasks
from oneway.evaluation.store import Store


@dataclass(frozen=True)
class AuditJob:
    """An audit with tasks that may run on other machines.

    Attributes:
        audited: Opens the model and loads the data, on the machine that runs a task. The cluster
            gets a copy: pass a function of an installed module, or a partial of such a function.
        store: Store of trained networks; see :class:`oneway.benchmark.CellsJob`.
        settings: Settings of the audit.
        seed: First of the seeds.
        device: Device for training and queries.
        report: Progress callback, in the process that runs a task.
    """

    audited: Callable[[], AuditTarget]
    store: Store
    settings: AuditSettings
    seed: int
    device: torch.device
    report: ProgressCallback = no_progress

    def run(self, name: str, context: AuditContext) -> TaskResult:
        """Run a task of the audit.

        Args:
            name: Name of the task, such as ``"controls"`` or ``"seed 0"``.
            context: Results that all tasks share.
        """
        tasks = AuditTasks(self.audited(), self.store, self.settings, self.seed, self.report)
        return tasks.run(name, context)


def audit_on_ray(
    job: AuditJob, *, retries: int = RETRIES, finished: Callable[[str], None] | None = None
) -> Executor:
    """Return an executor for ``ModelAudit.run``, which runs tasks on a Ray cluster.

    The cluster is that of :func:`oneway.benchmark.run_on_ray`. All tasks run at once, so that no
    seed is left out for lack of time; the plan is that of a single machine.

    Args:
        job: The audit.
        retries: Most attempts after the first, when a task's process or machine is lost.
        finished: Called with the name of each finished task.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidOptionError: ``retries`` is below 0.
    """
    check_count("retries", retries, least=0)
    sent = dataclasses.replace(job, store=Store(job.store.root.resolve()))

    def executor(context: AuditContext, names: Sequence[str]) -> Iterator[TaskResult | OnewayError]:
        tasks = [partial(sent.run, name, context) for name in names]
        results = dict[int, TaskResult | OnewayError]()
        position = 0
        for number, result in run_tasks(tasks, [job.device] * len(names), retries):
            results[number] = result
            if finished is not None:
                finished(names[number])
            while position in results:
                yield results.pop(position)
                position += 1

    return executor

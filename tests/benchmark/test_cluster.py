"""Experiments and audits as tasks on a real Ray: the same records, whatever is killed meanwhile."""

import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from auditing import audits
from benchmark.small import CPU, LABEL, NOISE, NONE, blobs, lasting, spec_of
from oneway.auditing import AuditJob, ModelAudit, audit_on_ray
from oneway.benchmark import Cells, CellsJob, run_on_ray
from oneway.benchmark.spec import DataSpec
from oneway.data import no_progress
from oneway.errors import InvalidOptionError, MissingDataError, TargetFailedError
from oneway.evaluation import Store, read_records, write_records
from oneway.evaluation.settings import ReleaseSpec

pytestmark = pytest.mark.slow

NOISY = ReleaseSpec("noise", "adversarial-noise", NOISE, attackers=("label-only", "static"))
SEEDS = (0, 1)


def spec(seed, path="blobs.npz"):
    made = spec_of(NONE, NOISY, LABEL, names=("label-only", "static"), seed=seed)
    data = DataSpec(name="npz", private=60, auxiliary=60, test=45, path=path)
    return dataclasses.replace(made, data=data)


@pytest.fixture(scope="module")
def workers(cluster):
    """Workers have oneway, but not these tests: they get them by value."""
    for module in (sys.modules[__name__], audits):
        cluster.cloudpickle.register_pickle_by_value(module)
    return cluster


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    images = blobs()
    np.savez(folder / "blobs.npz", images=images.images, labels=images.labels)
    return folder


def jobs_in(folder, root, report=no_progress, seeds=SEEDS):
    return [
        CellsJob(
            Cells(spec(seed), folder / f"seed{seed}.jsonl", Store(folder / "cache")),
            root,
            CPU,
            report=report,
        )
        for seed in seeds
    ]


def as_read(records):
    return [json.loads(json.dumps(lasting(record))) for record in records]


@pytest.fixture(scope="module")
def run_here(root, tmp_path_factory):
    """Where one process has run the same jobs."""
    folder = tmp_path_factory.mktemp("here")
    for job in jobs_in(folder, root):
        job.run()
    return folder


@pytest.fixture(scope="module")
def here(run_here):
    """What one process makes of the same jobs."""
    return [as_read(read_records(run_here / f"seed{seed}.jsonl")) for seed in SEEDS]


@pytest.mark.usefixtures("workers")
def test_a_killed_worker_is_replaced_and_its_task_goes_on_where_it_was(root, here, tmp_path):
    """The first to reach the second cell of seed 1 is killed, as by the machine's memory guard."""

    def kill_once(stage, share):
        marker = tmp_path / "killed"
        if (stage, share) == ("defend: label", 0.0) and not marker.exists():
            if len((tmp_path / "seed1.jsonl").read_text().splitlines()) < 2:
                return
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)

    plain, deadly = jobs_in(tmp_path, root), jobs_in(tmp_path, root, kill_once)
    found = dict(run_on_ray([plain[0], deadly[1]]))
    assert (tmp_path / "killed").exists()
    assert [as_read(found[number]) for number in range(2)] == here
    for number, seed in enumerate(SEEDS):
        assert read_records(tmp_path / f"seed{seed}.jsonl") == found[number]
    # The tasks ran in processes of their own, and not in this one.
    assert int((tmp_path / "killed").read_text()) != os.getpid()


@pytest.mark.usefixtures("workers")
def test_a_rerun_does_only_what_is_missing(root, run_here, here, tmp_path):
    def refuse(stage, share):
        raise AssertionError((stage, share))

    shutil.copytree(run_here, tmp_path, dirs_exist_ok=True)
    first = [read_records(tmp_path / f"seed{seed}.jsonl") for seed in SEEDS]
    write_records(tmp_path / "seed1.jsonl", first[1][:1])
    # Seed 0 is whole: whoever would load or train anything for it would report it.
    (whole,), (cut,) = jobs_in(tmp_path, root, refuse, (0,)), jobs_in(tmp_path, root, seeds=(1,))
    again = dict(run_on_ray([whole, cut]))
    assert again[0] == first[0]
    assert again[1][0] == first[1][0]  # its times and all
    assert as_read(again[1]) == here[1]


def test_a_worker_that_is_lost_too_often_is_an_error(workers, root, tmp_path):
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(workers.exceptions.WorkerCrashedError):
        list(run_on_ray(jobs_in(tmp_path, root, kill, (0,)), retries=0))


@pytest.mark.usefixtures("workers")
def test_an_error_raised_on_purpose_comes_home_and_is_not_tried_again(tmp_path):
    with pytest.raises(MissingDataError, match=r"blobs\.npz"):
        list(run_on_ray(jobs_in(tmp_path, tmp_path)))


@pytest.mark.usefixtures("workers")
def test_relative_paths_begin_where_the_command_was_given(
    root, run_here, here, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(root)
    shutil.copytree(run_here / "cache", tmp_path / "out" / "cache")  # nothing is to be trained
    (job,) = jobs_in(Path("out"), Path("data"), seeds=(1,))
    assert as_read(dict(run_on_ray([job]))[0]) == here[1]
    assert len(read_records(tmp_path / "out" / "seed1.jsonl")) == 3


def test_what_cannot_be_run_is_refused_before_ray_is_asked(root, tmp_path):
    jobs = jobs_in(tmp_path, root, seeds=(0, 0))
    with pytest.raises(InvalidOptionError, match="share a file"):
        next(run_on_ray(jobs))
    with pytest.raises(InvalidOptionError, match="retries"):
        next(run_on_ray(jobs[:1], retries=-1))
    assert list(run_on_ray([])) == []


RANDOM = ReleaseSpec("random", "gaussian-noise", {"standard_deviation": 1.0})
SETTINGS = dataclasses.replace(audits.TINY, seeds=2, controls=True)


def randomly_guarded():
    """A model behind noise: what is drawn must not depend on where, or after what, it is.

    Nobody follows its gradient, which would take longer than all other attackers together.
    """
    return audits.subject_of(audits.black_box(), rows=200, tests=60, release=RANDOM)


def spread_audit(folder, audited=randomly_guarded, report=no_progress, finished=None, **options):
    store = Store(folder)
    job = AuditJob(audited, store, SETTINGS, 0, CPU, report)
    audit = ModelAudit(audited(), store, SETTINGS)
    return audit.run(audit_on_ray(job, finished=finished, **options))


@pytest.fixture(scope="module")
def audited_here(tmp_path_factory):
    """What one process finds of the same audit."""
    return ModelAudit(randomly_guarded(), Store(tmp_path_factory.mktemp("one")), SETTINGS).run()


@pytest.mark.usefixtures("workers")
def test_an_audit_finds_the_same_on_a_cluster_whose_worker_is_killed_and_again(
    audited_here, tmp_path
):
    """What its workers trained is kept, and not trained again."""

    def kill_once(stage, share):
        marker = tmp_path / "killed"
        if stage.startswith("seed 1: averaging") and share == 1.0 and not marker.exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)

    parts = []
    found = spread_audit(tmp_path / "cache", report=kill_once, finished=parts.append)
    assert int((tmp_path / "killed").read_text()) != os.getpid()
    assert set(parts) == {"controls", "matching", "twice the strength", "seed 0", "seed 1"}
    assert audits.lasting(found.record) == audits.lasting(audited_here.record)
    assert found.queries == audited_here.queries
    assert found.pictures.keys() == audited_here.pictures.keys()

    def refuse(stage, share):
        # A task that trains reports each epoch; one that finds the network, that it is there.
        assert share in (0.0, 1.0), stage

    again = spread_audit(tmp_path / "cache", report=refuse)
    assert audits.lasting(again.record) == audits.lasting(audited_here.record)


@pytest.mark.usefixtures("workers")
def test_an_audit_whose_model_fails_elsewhere_says_so(tmp_path):
    here = os.getpid()

    def failing():
        if os.getpid() != here:
            raise TargetFailedError("the model is not on this machine")
        return audits.subject_of()

    with pytest.raises(TargetFailedError, match="not on this machine"):
        spread_audit(tmp_path, failing)


def test_an_audit_is_not_tried_less_than_once(tmp_path):
    with pytest.raises(InvalidOptionError, match="retries"):
        spread_audit(tmp_path, retries=-1)

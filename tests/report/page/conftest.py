"""An audit of images and one of records, run once; and records of experiments."""

import types

import numpy as np
import pytest

from auditing.audits import (
    COLUMNS,
    TESTS,
    RecordScores,
    audit,
    quickly,
    records,
    run_few_controls,
    subject_of,
)
from oneway.auditing import AuditTarget
from oneway.evaluation import ReleaseSpec
from oneway.targets import TorchTarget
from report.planted import STEPS, record_of


@pytest.fixture(scope="session")
def audits(tmp_path_factory):
    """What two audits found: of images, with controls; and of records, without."""
    folder = tmp_path_factory.mktemp("audits")
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        run_few_controls(patch)
        rounding = ReleaseSpec("rounding", "rounding", {"decimals": 2})
        images = audit(subject_of(release=rounding), folder, controls=True)
        own, test = records(300, 0), records(TESTS, 1)
        subject = AuditTarget(TorchTarget(RecordScores()), own, test, columns=COLUMNS)
        tables = audit(subject, folder)
    return types.SimpleNamespace(images=images, tables=tables)


def experiment(**changed):
    """Records of four releases of an experiment, three seeds each."""
    names = ("none", *STEPS)
    gaps = dict(zip(names, (0.0, 0.35, -0.5, 0.95), strict=True))
    return [
        record_of(
            name,
            seed,
            gap=gaps[name] + 0.01 * seed,
            l1_mean=0.1 * place,
            logit_distortion=float(place),
            names=names,
            cell=f"{name} {seed}",
            **changed,
        )
        for place, name in enumerate(names)
        for seed in range(3)
    ]


@pytest.fixture
def board():
    return experiment


@pytest.fixture
def gallery():
    """Find pictures of any record: of eight colors, ten queries."""
    generator = np.random.default_rng(0)
    shown = {
        name: generator.random((10, 8, 6, 3)).astype(np.float32)
        for name in ("truth", "label-only", "static", "retrained")
    }
    return lambda _: shown

"""As much of Ray as pages and examples use, in this process: test_ray.py has the real one."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from optional import later

pandas = later("pandas")


class StoredRows:
    """As much of a dataset of Ray Data as `guard_dataset`, pages and examples use."""

    def __init__(self, rows):
        self._rows = rows

    def columns(self):
        return list(self._rows[0])

    def map_batches(self, worker, *, fn_constructor_args, batch_size, batch_format, compute):
        assert (batch_size, batch_format, compute.max_size) == (1024, "numpy", 1)
        batch = {name: np.stack([row[name] for row in self._rows]) for name in self.columns()}
        done = worker(*by_value(fn_constructor_args))(batch)
        rows = zip(*done.values(), strict=True)
        return StoredRows([dict(zip(done, row, strict=True)) for row in rows])

    def take_all(self):
        return self._rows

    def to_pandas(self):
        return pandas.DataFrame(self._rows)


def by_value(sent):
    """Return what another process would get."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(sent))


def ray_in_this_process(monkeypatch):
    """Serve by Ray's own local mode, and keep stored rows here; both get their code by value."""
    serve = pytest.importorskip("ray.serve")
    ran_here = functools.partial(serve.run, _local_testing_mode=True)
    monkeypatch.setattr(serve, "run", lambda app, **options: ran_here(by_value(app), **options))
    # Batching asks how many requests a replica takes, even where there is none.
    replica = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=128))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.data.from_items", StoredRows)
    monkeypatch.setattr(serve, "delete", lambda _: None)

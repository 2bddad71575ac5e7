"""What all tests share: one thread each, how hypothesis searches, a cluster, a browser.

Under pytest-xdist with ``--dist loadgroup`` the tests of a file stay in one worker, with whatever
its fixtures made, and so do all tests that share the cluster, or the built distributions.
"""

import gc
import os
import re
import sys

import pytest
from hypothesis import settings

from browsing import ARGUMENTS, chromium_path
from built import Built, build

# Before torch is imported, here and in every process that a test starts. Two workers with two
# threads each wait for each other: on a busy machine that takes 15 times as long.
for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_threads] = "1"
# pytest rewrites every test module; keep that for the next run, or collection takes twice as long.
# Processes that a test starts need not compile oneway anew, either.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Ray reads this when it is imported. A thread of Serve that asks for a cluster when that has ended
# would start another, which takes ports and a sixth of a core until all tests are done.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

settings.register_profile("default", deadline=None, max_examples=60)
# The same few examples each time; developers search further, and elsewhere.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, max_examples=20)
settings.load_profile("ci" if os.environ.get("CI") else "default")


SHORT = {"EPOCHS": 25, "UNITS": 96}
"""Perceptrons that are trained just long enough for their control."""


def shorten():
    """Shorten trainings in this process."""
    from oneway.attacks import bagged_perceptrons

    vars(bagged_perceptrons).update(SHORT)


@pytest.fixture(scope="session", autouse=True)
def short_trainings():
    if os.environ.get("ONEWAY_WRITE_DOCS") != "1":  # pages print what whole trainings reach
        shorten()


GROUPS = {
    "cluster": re.compile(r"/test_(cluster|ray)\.py::|::test\w*_on_(a_cluster|ray)(?![a-z])"),
    "distribution": re.compile(r"/test_(clean_install|wheel)\.py::"),
    # MLflow, transformers and scikit-learn take seconds to import.
    "adapters": re.compile(r"/adapters/test_|/test_(real_models|adapters_page)\.py::"),
    "audited pages": re.compile(r"/report/page/test_(audit_page|in_a_browser)\.py::"),
    "playground": re.compile(r"/playground/test_(drawing|server|session)\.py::"),
}
"""Which tests stay in one worker although they are in several files, by their ids."""


def unit_of(nodeid):
    """Return what stays in one worker: the group of a test, or its file."""
    for name, pattern in GROUPS.items():
        if pattern.search(nodeid):
            return name
    return nodeid.partition("::")[0]


def pytest_collection_modifyitems(items):
    """Begin with what takes long, so that no worker is left with it at the end."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()) and unit_of(item.nodeid) != "cluster":
            raise pytest.UsageError(f"say _on_a_cluster or _on_ray in the name of {item.nodeid}")
    slow = {unit_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    ranks = dict.fromkeys(slow, len(GROUPS)) | {name: at for at, name in enumerate(GROUPS)}
    items.sort(key=lambda item: ranks.get(unit_of(item.nodeid), len(GROUPS) + 1))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Exempt imported modules from garbage collection, which would walk through all of them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Schedule by file or group: marks for groups are lost between pytest 9.2 and xdist 3.8."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class ByFileOrGroup(LoadGroupScheduling):
        def _split_scope(self, nodeid):
            return unit_of(nodeid)

    config.option.loadscopereorder = False  # the order is that of the collection
    return ByFileOrGroup(config, log)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """End the cluster after its last test: idle, it takes a sixth of a core from all others."""
    if unit_of(item.nodeid) != "cluster" or "ray" not in sys.modules:
        return
    if nextitem is None or unit_of(nextitem.nodeid) != "cluster":
        ray = sys.modules["ray"]
        if ray.is_initialized():
            if "ray.serve" in sys.modules:
                sys.modules["ray.serve"].shutdown()  # its threads ask the cluster once a second
            ray.shutdown()


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Built:
    """The distributions, for all tests of them."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def cluster():
    """Ray with several workers on this machine, started once; functions of tests go by value."""
    ray = pytest.importorskip("ray", reason="needs `pip install 'oneway[ray]'`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # On a busy machine Ray's own processes take longer to start than Ray waits for them.
        patch.setenv("RAY_agent_register_timeout_ms", "300000")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "300")
        patch.setenv("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "300")
        patch.setenv("ONEWAY_KEY", "0123456789abcdef")  # as each machine of a cluster has it
        patch.delenv("RAY_ADDRESS", raising=False)
        # Each is another Python to start: to add machines, to show logs, to show a page.
        for process in ("start_monitor", "start_log_monitor", "start_api_server"):
            patch.setattr(f"ray._private.node.Node.{process}", lambda *_, **__: None)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.init(
            "local",
            num_cpus=2,
            log_to_driver=False,
            object_store_memory=2**27,
            runtime_env={"worker_process_setup_hook": shorten},
        )
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; for a module, since Playwright holds the thread's event loop."""
    path = chromium_path()
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield opened
        opened.close()

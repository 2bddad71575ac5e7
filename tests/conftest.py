"""How hypothesis searches: without a clock, and in CI with the same examples every time."""

import os

import pytest
import torch
from hypothesis import settings

from browsing import ARGUMENTS, chromium_path

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def cluster():
    """Ray with several workers on this machine, started once; functions of tests go by value."""
    ray = pytest.importorskip("ray", reason="needs `pip install 'oneway[ray]'`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("ONEWAY_KEY", "0123456789abcdef")  # as each machine of a cluster has it
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=2**27
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


@pytest.fixture(scope="module")
def one_thread():
    """Compute as a task of Ray does, with one thread: sums round otherwise with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

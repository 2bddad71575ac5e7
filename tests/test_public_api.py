"""The public surface: what is exported, where it lives, and what importing it costs."""

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import oneway

SOURCE = Path(oneway.__file__).parent
PACKAGES = [
    ".".join(path.parent.relative_to(SOURCE.parent).parts)
    for path in sorted(SOURCE.rglob("*/__init__.py"))
    if "\n__all__ = " in path.read_text(encoding="utf-8")
]
"""All but ``oneway`` itself."""


def test_every_name_is_the_object_of_its_home():
    for name in oneway.__all__:
        home = importlib.import_module(oneway._HOMES[name])
        assert getattr(oneway, name) is getattr(home, name)
        assert name in getattr(home, "__all__", [name])


def test_the_names_are_those_with_a_home_in_order_and_once():
    assert set(oneway.__all__) == set(oneway._HOMES)
    assert len(set(oneway.__all__)) == len(oneway.__all__)
    assert list(oneway.__all__) == sorted(oneway.__all__)


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from oneway import *", names)  # noqa: S102  a star import stands at module level only
    del names["__builtins__"]
    assert set(names) == set(oneway.__all__)


def test_completion_offers_the_public_names():
    assert set(dir(oneway)) == {*oneway.__all__, "__version__"}


def test_an_unknown_name_is_an_attribute_error():
    for name in ("adversarial_noise", "Defense", "torch", "_nothing"):
        with pytest.raises(AttributeError, match=f"module 'oneway' has no attribute '{name}'"):
            getattr(oneway, name)
        assert not hasattr(oneway, name)


def test_every_package_has_what_it_says_it_exports():
    assert len(PACKAGES) > 12
    for package in PACKAGES:
        module = importlib.import_module(package)
        assert [name for name in module.__all__ if not hasattr(module, name)] == [], package
        assert len(set(module.__all__)) == len(module.__all__), package


def test_everything_exported_is_described():
    for package in ("oneway", *PACKAGES):
        module = importlib.import_module(package)
        assert inspect.getdoc(module), package
        for name in module.__all__:
            assert_described(getattr(module, name), f"{package}.{name}")


def assert_described(value, name):
    if inspect.isclass(value) or inspect.isfunction(value):
        # A dataclass without a text of its own gets its signature as one.
        text = value.__doc__ or ""
        assert text.strip(), name
        assert not text.startswith(f"{value.__name__}("), name
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert function.__doc__, f"{name}.{method}"


STEPS = {
    "oneway and its commands": "import oneway, oneway.cli.main",
    "an error": "oneway.OnewayError",
    "what serves": "import torch; before = settings(); oneway.protect, oneway.load_guard",
    "adapters and experiments": "import oneway.adapters, oneway.adapters.ray, oneway.benchmark",
    "every name": "[getattr(oneway, name) for name in oneway.__all__]; assert settings() == before",
}
"""What one process imports or uses, in this order."""

TORCHS_SETTINGS = """
import json, sys
def settings():
    return (
        torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
    )
loaded = {}
"""


@pytest.fixture(scope="module")
def loaded():
    """Modules that are loaded after each step; torch's settings are the same after all."""
    lines = [f"{step}\nloaded[{name!r}] = [*sys.modules]" for name, step in STEPS.items()]
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-c", "\n".join([TORCHS_SETTINGS, *lines, "print(json.dumps(loaded))"])],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,  # against a hang alone: a busy machine takes minutes to import torch
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}


def test_importing_stays_fast_without_torch_numpy_or_matplotlib(loaded):
    found = loaded["oneway and its commands"]
    assert {"oneway", "oneway.cli.main"} <= found
    assert not {"torch", "numpy", "matplotlib", "safetensors"} & found


def test_a_name_loads_what_it_needs_when_it_is_first_used(loaded):
    assert "oneway.errors" in loaded["an error"]
    assert "torch" not in loaded["an error"]


def test_what_serves_loads_nothing_that_attacks_or_audits(loaded):
    found = loaded["what serves"]
    assert "oneway.adapters.protection" in found
    assert not {"oneway.attacks", "oneway.auditing", "oneway.data", "oneway.report"} & found


def test_no_optional_package_is_loaded_with_the_adapters(loaded):
    found = loaded["adapters and experiments"]
    assert {"oneway.adapters.ray", "oneway.benchmark"} <= found
    assert not {"ray", "mlflow", "sklearn", "onnxruntime", "httpx"} & found


def test_using_a_name_leaves_torchs_settings_alone(loaded):
    """Its process asserts it; and all that has a home was used."""
    assert set(oneway._HOMES.values()) <= loaded["every name"]


SETTINGS = """
import locale, logging, os, random, signal, sys, threading, warnings
def settings():
    return (
        dict(os.environ), os.getcwd(), random.getstate(), locale.setlocale(locale.LC_ALL),
        list(warnings.filters), logging.root.handlers[:], logging.root.level,
        signal.getsignal(signal.SIGINT), sys.excepthook, threading.active_count(),
        sys.getrecursionlimit(),
    )
"""


def test_importing_changes_no_setting_and_writes_no_file(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    imported = "import oneway, oneway.cli.main"
    script = f"{SETTINGS}\nbefore = settings()\n{imported}\nassert settings() == before\n"
    # What Python and typer themselves would write is not ours.
    home = {"HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-c", script],
        cwd=tmp_path / "work",
        env=os.environ | home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_help_takes_a_fraction_of_a_second_of_the_processor():
    """Time of the processor and not of the clock: others may compute beside the tests."""
    resource = pytest.importorskip("resource", reason="a system that tells processor time")
    script = "from oneway.cli.main import app\napp(['--help'])"
    spent = []
    for _ in range(2):  # the first may compile
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(  # noqa: S603  our own script
            [sys.executable, "-c", script], check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 1

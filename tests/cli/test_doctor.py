"""`oneway doctor`: what it says of healthy and of broken installations, as a user reads it."""

import json
import os
import subprocess
import sys

import pytest

import oneway as package
from cli.sites import Site
from oneway.cli import diagnosis

TORCH = {"version": "2.13.0", "built_for_cuda": None, "gpus": [], "mps": False, "threads": 1}


class Machine:
    """An installation that is not there, and what came of importing its packages."""

    def __init__(self, folder, monkeypatch):
        self.site = Site(folder / "site")
        self.errors, self.torch, self.tried = {}, dict(TORCH), []
        self.driver = folder / "driver"
        self.requires = ["torch>=2.6", "numpy>=1.26"]
        self.version = package.__version__
        monkeypatch.setattr(diagnosis, "find_installed", lambda: self.site.installed)
        monkeypatch.setattr(diagnosis, "try_imports", self.try_imports)
        monkeypatch.setattr(diagnosis, "NVIDIA_DRIVER", self.driver)
        monkeypatch.setattr(diagnosis, "usable_cores", lambda: 2)
        monkeypatch.chdir(folder)

    def try_imports(self, modules):
        self.tried += modules
        facts = {name: {} if self.errors.get(name) else self.torch for name in ("torch", "oneway")}
        return {name: (self.errors.get(name), facts.get(name, {})) for name in modules}

    def install(self, *names, extras=("serve",), requires=(), python=None):
        """Install oneway, and other packages: ``name version`` each."""
        wanted = [*self.requires, *requires]
        self.site.install("oneway", self.version, requires=wanted, extras=extras, python=python)
        for name in names:
            self.site.install(*name.split())


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


CORE = ("torch 2.13.0", "numpy 2.4.6")
SERVE = ("starlette>=0.41; extra == 'serve'", "uvicorn>=0.31; extra == 'serve'")


def text_of(result):
    """Return a result's text as a single line."""
    return " ".join(result.stdout.split())


def test_a_healthy_installation_exits_0(oneway, machine):
    machine.install(*CORE, "starlette 1.0", "uvicorn 0.50", requires=SERVE)
    result = oneway("doctor", "--imports")
    assert result.exit_code == 0, result.output
    assert "Everything that was imported works." in result.stdout
    assert "serve ready oneway serve: guarded" in text_of(result)
    assert "torch 2.13.0 computes on the CPU, 1 thread" in text_of(result)
    assert "pip install" not in result.stdout
    assert machine.tried == ["oneway", "torch", "numpy", "starlette", "uvicorn"]


def test_without_imports_only_oneway_is_imported_and_its_core_if_that_fails(oneway, machine):
    machine.install(*CORE, "starlette 0.1", "uvicorn 0.50", requires=SERVE)
    machine.errors["uvicorn"] = "ImportError: not imported"
    result = oneway("doctor")
    assert machine.tried == ["oneway"]
    assert "torch 2.13.0 computes on the CPU, 1 thread" in text_of(result)
    assert "pip install 'starlette>=0.41'" in text_of(result)  # versions are read without imports
    assert "ImportError" not in result.stdout
    machine.errors |= {"oneway": "gone", "numpy": "ImportError: torn"}
    machine.tried.clear()
    result = oneway("doctor")
    assert machine.tried == ["oneway", "torch", "numpy"]
    assert "broken: numpy: ImportError: torn" in text_of(result)


def test_an_extra_that_is_missing_is_no_fault_and_says_how_to_get_it(oneway, machine):
    machine.install(*CORE, requires=SERVE)
    result = oneway("doctor", "--imports")
    assert result.exit_code == 0, result.output
    assert "serve missing" in text_of(result)
    assert "missing: starlette, uvicorn pip install 'oneway[serve]'" in text_of(result)


def test_an_extra_that_is_there_in_part_says_what_is_missing(oneway, machine):
    machine.install(*CORE, "uvicorn 0.50", requires=SERVE)
    result = oneway("doctor", "--imports")
    assert result.exit_code == 0, result.output
    assert "serve incomplete" in text_of(result)
    assert "uvicorn 0.50 missing: starlette pip install 'oneway[serve]'" in text_of(result)


def test_an_extras_package_that_does_not_load_exits_2(oneway, machine):
    machine.install(*CORE, "starlette 1.0", "uvicorn 0.50", requires=SERVE)
    machine.errors["uvicorn"] = "ImportError: undefined symbol [bold]"
    result = oneway("doctor", "--imports")
    assert result.exit_code == 2
    assert "serve broken" in text_of(result)
    assert "broken: uvicorn: ImportError: undefined symbol [bold]" in text_of(result)
    assert "pip install --force-reinstall --no-deps uvicorn==0.50" in text_of(result)
    assert "does not work" in result.stdout


def test_a_version_out_of_range_exits_2_and_names_the_range(oneway, machine):
    machine.install("torch 2.5.1", "numpy 2.4.6", "starlette 0.40", "uvicorn 1", requires=SERVE)
    result = oneway("doctor", "--imports")
    assert result.exit_code == 2
    assert "torch: 2.5.1 is not >=2.6. Run `pip install 'torch>=2.6'`." in text_of(result)
    assert "pip install 'starlette>=0.41'" in text_of(result)
    extras = json.loads(oneway("doctor", "--imports", "--json").stdout)["extras"]
    assert {extra["name"]: extra["state"] for extra in extras} == {"serve": "broken"}


def test_a_core_without_one_of_its_packages_exits_2(oneway, machine):
    machine.install("torch 2.13.0")
    result = oneway("doctor", "--imports")
    assert result.exit_code == 2
    assert "numpy is not installed, and nothing works without it." in text_of(result)


def test_a_torch_that_does_not_load_is_told_once(oneway, machine):
    machine.install(*CORE)
    machine.errors |= {"torch": "the interpreter ended by signal 4", "oneway": "gone"}
    result = oneway("doctor", "--imports")
    assert result.exit_code == 2
    assert "torch does not work: see below" in text_of(result)
    assert text_of(result).count("broken:") == 1


def test_a_release_that_fails_by_itself_is_told(oneway, machine):
    machine.install(*CORE)
    machine.errors["oneway"] = "RuntimeError: no probabilities"
    result = oneway("doctor", "--imports")
    assert result.exit_code == 2
    assert "broken: oneway: RuntimeError: no probabilities" in text_of(result)


def test_a_torchvision_of_another_build_is_found_by_loading_it(oneway, machine):
    """Its metadata may be in order: builds for a CPU and for CUDA have one version."""
    machine.install(*CORE)
    machine.site.install("torchvision", "0.28", requires=["torch==2.13.0"])
    machine.errors["torchvision"] = "RuntimeError: operator torchvision::nms does not exist"
    result = oneway("doctor", "--imports")
    assert machine.tried == ["oneway", "torch", "numpy", "torchvision"]
    assert result.exit_code == 2
    assert "torchvision: RuntimeError: operator torchvision::nms does not exist" in text_of(result)
    assert "built for torch 2.13.0, or remove it" in text_of(result)


def test_a_package_that_wants_another_numpy_is_broken_if_it_does_not_load(oneway, machine):
    machine.install(*CORE)
    machine.site.install("oldtimer", "1.0", requires=["numpy<2"])
    for error in (None, "ImportError: no numpy.core"):
        machine.errors["oldtimer"] = error
        result = oneway("doctor", "--imports")
        assert "oldtimer 1.0 wants numpy<2, but 2.4.6 is installed." in text_of(result)
        assert result.exit_code == (0 if error is None else 2)
        assert ("note:" in result.stdout) == (error is None)


def test_another_python_and_another_copy_are_told(oneway, machine):
    machine.version = "99.0"
    machine.install(*CORE, python=">=4")
    result = oneway("doctor", "--imports")
    assert result.exit_code == 2
    assert "is not >=4." in text_of(result)
    assert f"oneway {package.__version__} is imported, but 99.0 is installed" in text_of(result)


def test_devices_that_are_left_unused_are_noted(oneway, machine):
    machine.install(*CORE)
    for torch, driver, note in (
        ({"built_for_cuda": "12.8"}, False, "sees none: it uses the CPU"),
        ({"mps": True}, False, "an Apple GPU, which --device auto leaves aside"),
        ({"threads": 64}, False, "64 threads on 2 cores. Set OMP_NUM_THREADS=2."),
        ({}, True, "There is an NVIDIA driver"),
        ({"built_for_cuda": "12.8", "gpus": ["H100"]}, True, None),
    ):
        machine.torch = TORCH | torch
        if driver:
            machine.driver.touch()
        result = oneway("doctor", "--imports")
        assert result.exit_code == 0, result.output
        assert text_of(result).count("note:") == (note is not None), note
        assert (note or "computes on H100") in text_of(result)


def test_folders_are_measured_and_an_unwritable_one_is_noted(oneway, machine, tmp_path):
    machine.install(*CORE)
    (tmp_path / "cache" / "deep").mkdir(parents=True)
    (tmp_path / "cache" / "deep" / "file").write_bytes(b"0" * 1_500_000)
    (tmp_path / "cache" / "two").write_bytes(b"0" * 1_000_000)
    (tmp_path / "cache" / "two").chmod(0o755)  # as if it could be entered
    result = oneway("doctor", "--imports", "--cache", tmp_path / "cache")
    assert "cache (2.5 MB in 2 files)" in text_of(result)
    result = oneway("doctor", "--imports", "--cache", tmp_path / "cache" / "two" / "below")
    assert "below (not there yet, not writable)" in text_of(result)
    assert "cannot be written to" in text_of(result)
    assert not (tmp_path / "runs").exists()
    assert oneway("doctor", "--imports").exit_code == 0


def test_no_browser_is_no_fault(oneway, machine, monkeypatch):
    machine.install(*CORE)
    monkeypatch.setattr(diagnosis, "find_browser", lambda: None)
    result = oneway("doctor", "--imports")
    assert result.exit_code == 0
    assert "browser: none found" in result.stdout


@pytest.mark.usefixtures("machine")
def test_a_copy_that_is_not_installed_is_wrong_usage(oneway):
    result = oneway("doctor", "--imports")
    assert result.exit_code == 2
    assert "pip install -e ." in result.stderr


OF_SERVE = """
from packaging.utils import canonicalize_name
from oneway.cli import diagnosis
from oneway.cli.main import app

installed = diagnosis.find_installed()
wanted = [each for extra in ("", "serve") for each, _ in diagnosis.find_wanted(extra, installed)]
names = {"oneway"} | {canonicalize_name(each.name) for each in wanted}
diagnosis.find_installed = lambda: {name: installed[name] for name in names & installed.keys()}
app()
"""
"""The doctor as it is, for what the core and `oneway serve` need of all that is installed."""


def test_this_installation_works(tmp_path):
    """In a process of its own, with secrets in its environment that nobody may see."""
    secrets = {"ONEWAY_KEY": "hush-1", "API_TOKEN": "hush-2", "PIP_INDEX_URL": "https://u:hush-3@x"}
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-c", OF_SERVE, "doctor", "--json"],
        cwd=tmp_path,
        env=os.environ | secrets | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["works"] is True
    assert found["oneway"] == package.__version__
    states = {extra["name"]: extra["state"] for extra in found["extras"]}
    assert states["serve"] == "ready"
    assert states["mlflow"] == "missing"
    core = {each["name"]: each for each in found["core"]}
    assert {"numpy", "torch", "typer"} <= core.keys()
    assert not any(each["faults"] or each["version"] is None for each in core.values())
    assert found["torch"]["version"] == core["torch"]["version"]
    assert "hush" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_text_says_what_the_json_does(oneway, machine):
    machine.install(*CORE, "uvicorn 0.50", requires=SERVE, extras=("serve", "ray", "onnx"))
    text, found = (
        oneway("doctor", "--imports").stdout,
        json.loads(oneway("doctor", "--imports", "--json").stdout),
    )
    rows = [line.split() for line in text.splitlines()]
    for extra in found["extras"]:
        assert [extra["name"], extra["state"]] in [row[:2] for row in rows]
    for each in found["core"]:
        assert [each["name"], each["version"], each["wanted"], "ready"] in rows
    assert found["torch"] == TORCH
    assert all(folder["path"] in text for folder in found["folders"])


def test_it_imports_nothing_heavy_itself():
    """A broken package must not break the doctor."""
    script = (
        "import sys\nfrom oneway.cli.main import app\n"
        "from oneway.cli import diagnosis\n"
        "diagnosis.try_imports = lambda modules: {name: ('torn', {}) for name in modules}\n"
        "try:\n    app(['doctor'])\nexcept SystemExit as stop:\n"
        "    assert stop.code == 2\n    print(*{'torch', 'numpy', 'ray'} & sys.modules.keys())\n"
    )
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""

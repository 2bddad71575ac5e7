"""The wheel alone, in an environment of its own with the core and no extra, as a user gets it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from textwrap import indent

import pytest

from built import ROOT

pytestmark = pytest.mark.slow

WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"
PAGE = ROOT / "docs" / "install.md"
GPU_BUILDS = re.compile(r"nvidia-|cuda-|triton$")
"""What torch's builds for GPUs bring besides; which build an index has depends on the platform."""

LINKED = (
    "fsspec",
    "mpmath",
    "networkx",
    "numpy",
    "pydantic",
    "pydantic-core",
    "pygments",
    "setuptools",
    "sympy",
    "torch",
)
"""Packages with the most to unpack and to compile."""


@dataclass(frozen=True)
class Clean:
    """The environment: its Python, a folder to work in, and variables without ours."""

    folder: Path
    python: Path
    environment: dict[str, str]

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in its own folder; it must end with that code."""
        program, *rest = command
        done = subprocess.run(  # noqa: S603  a program of this environment
            [str(self.python.parent / str(program)), *map(str, rest)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def script(self, text: str) -> str:
        return self.run("python", "-c", text).stdout


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """An environment with the wheel and what the core asks for, and no other package.

    Its largest packages are linked from the environment of the tests: to unpack and compile
    PyTorch's 200 MB takes longer than all tests here.
    """
    folder = tmp_path_factory.mktemp("clean")
    work = folder / "work"
    work.mkdir()
    subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")],
        check=True,
        capture_output=True,
    )
    bin_folder = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"HOME": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    made = Clean(work, bin_folder / "python", environment)
    site = Path(made.script("import site; print(site.getsitepackages()[0])").strip())
    for package in map(distribution, LINKED):
        for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            (site / name).symlink_to(Path(str(package.locate_file(name))).resolve())
    pip = [sys.executable, "-m", "pip", "--python", str(made.python), "--quiet"]
    # The compiler is the user's first import, and most of an installation's time.
    install = ["install", "--disable-pip-version-check", "--no-compile"]
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    done = subprocess.run(  # noqa: S603  our own interpreter
        [*pip, *install, *constraint, str(built.wheel)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return made


PACKAGES = [
    "adapters",
    "attacks",
    "auditing",
    "benchmark",
    "data",
    "defenses",
    "interface",
    "metrics",
    "report",
]


HELP = f"""
from importlib import import_module
import oneway
from oneway.cli.main import app
from typer.testing import CliRunner
print(oneway.__version__, CliRunner().invoke(app, ['--help']).stdout)
for name in {PACKAGES}:
    package = import_module(f'oneway.{{name}}')
    [getattr(package, name) for name in getattr(package, '__all__', ())]
"""


def test_importing_and_help_need_no_extra(said):
    assert re.match(r"\d+\.\d+", said["help"])
    assert "doctor" in said["help"]


DOCTOR = """
from oneway.cli.main import app
from typer.testing import CliRunner
print(CliRunner().invoke(app, ['doctor'], catch_exceptions=False).stdout)
"""


def test_the_command_is_installed(clean):
    assert re.match(r"oneway \d+\.\d+", clean.run("oneway", "--version").stdout)


def test_doctor_finds_the_core_working_and_the_extras_missing(clean, said):
    text = said["doctor"].replace(str(clean.folder), "/home/you/work")
    assert "Everything that was imported works." in text
    assert "broken" not in text
    state = re.compile(r"^(\w+) +(missing|incomplete|ready|broken) ", re.MULTILINE)
    states = dict(state.findall(text))
    extras = distribution("oneway").metadata.get_all("Provides-Extra")
    assert states.keys() == set(extras)
    assert set(states.values()) <= {"missing", "incomplete"}
    for name in states:
        assert f"pip install 'oneway[{name}]'" in text
    lines = [line.rstrip() for line in text.splitlines()]
    page = rewritten("doctor", "\n".join(["```text", *lines, "```"]))
    shown = dict(state.findall(page))
    assert {name: state for name, state in shown.items() if name in states} == states


GUARDED = """
import torch, oneway
from pathlib import Path
from oneway.adapters import Guard, GuardedModule
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses import build_defense, open_guard_file

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)).eval()
images = torch.rand(400, 1, 8, 8)
logits = model(images).detach()
rounded = oneway.DefendedTarget(
    oneway.TorchTarget(model), build_defense("rounding", {"decimals": 1}, None)
)(images)
assert torch.equal(rounded.argmax(-1), logits.argmax(-1))
assert torch.allclose(rounded * 10, (rounded * 10).round(), atol=1e-5)

fitted = CodebookRelease.fit(logits, images, generator=torch.Generator().manual_seed(0))
fitted.save(Path("guard.safetensors"))
opened = CodebookRelease.load(Path("guard.safetensors"))
assert torch.equal(opened(logits), fitted(logits))
assert opened.certificate == fitted.certificate
guarded = oneway.DefendedTarget(oneway.TorchTarget(model), opened)(images)
assert torch.equal(guarded.argmax(-1), logits.argmax(-1))
print(len(guarded.unique(dim=0)), "vectors")
"""


def test_a_module_is_guarded_by_rounding_and_by_a_codebook_from_its_file(said):
    assert 5 <= int(said["guarded"].split()[0]) <= 60


NEEDED = {
    ("demo",): "demo",
    ("playground", "--no-open"): "playground",
    ("serve", "m.pt", "--outputs", "logits", "--input-shape", "4", "--guard", "g"): "serve",
    ("serve", "http://127.0.0.1:9", "--outputs", "logits", "--guard", "g"): "serve",
    ("audit", "m.pt", "--outputs", "logits", "--attacker-data", "a", "--queries", "q"): "audit",
    ("export", "none.safetensors", "--out", "guard.onnx"): "export",
}


COMMANDS = f"""
from typer.testing import CliRunner
from oneway.cli.main import app
done = [CliRunner().invoke(app, command) for command in {[*NEEDED]}]
print(json.dumps([[one.exit_code, one.stderr] for one in done]))
"""


@pytest.fixture(scope="module")
def said(clean):
    """What four scripts print, in one process: each would import torch anew."""
    lines = ["import contextlib, io, json", "said = {}"]
    scripts = {"doctor": DOCTOR, "help": HELP, "guarded": GUARDED, "commands": COMMANDS}
    for name, script in scripts.items():
        lines.append("with contextlib.redirect_stdout(io.StringIO()) as printed:")
        lines += [indent(script, "    "), f"said[{name!r}] = printed.getvalue()"]
    return json.loads(clean.script("\n".join([*lines, "print(json.dumps(said))"])))


def test_a_command_without_its_extra_says_which(said):
    done = json.loads(said["commands"])
    for (command, extra), (code, stderr) in zip(NEEDED.items(), done, strict=True):
        assert code == 2, (command, stderr)
        assert f"pip install 'oneway[{extra}]'" in stderr, (command, stderr)
        assert stderr.strip().splitlines()[-1].startswith("error: "), (command, stderr)


def rewritten(marker: str, text: str) -> str:
    """Return what stands between two markers of the page; with ONEWAY_WRITE_DOCS=1, write it."""
    page, block = (
        PAGE.read_text(encoding="utf-8"),
        rf"<!-- {marker} -->\n(.*)<!-- end of {marker} -->",
    )
    if WRITE:
        new = f"<!-- {marker} -->\n{text}\n<!-- end of {marker} -->"
        page = re.sub(block, lambda _: new, page, flags=re.DOTALL)
        PAGE.write_text(page, encoding="utf-8")
    (written,) = re.findall(block, page, flags=re.DOTALL)
    return written


SIZES = """
import json
from importlib.metadata import distributions
rows = {}
for one in distributions():
    sizes = [file.locate().stat().st_size for file in one.files or () if file.locate().is_file()]
    rows[one.metadata["Name"]] = [one.version, sum(sizes), one.requires or []]
print(json.dumps(rows))
"""


def core_table(clean) -> str:
    """Return a row for each package of the core's installation, the largest first."""
    rows = json.loads(clean.script(SIZES))
    brought: dict[str, list[str]] = {}
    for owner, (_, _, requires) in rows.items():
        for text in requires:
            if "extra ==" not in text:
                name = normal(re.split(r"[^\w.-]", text)[0])
                brought.setdefault(name, []).append(owner)
    lines = ["| package | MB | asked for by |", "| --- | --- | --- |"]
    for name, (_, size, _) in sorted(rows.items(), key=lambda row: (-row[1][1], row[0])):
        owners = ", ".join(sorted(brought.get(normal(name), []), key=str.lower)) or "you"
        lines.append(f"| {name} | {size / 1e6:.1f} | {owners} |")
    total = sum(size for _, size, _ in rows.values())
    return "\n".join([*lines, f"| **all** | **{total / 1e6:.0f}** | |"])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(table: str) -> set[str]:
    names = {normal(name) for name in re.findall(r"^\| ([\w.-]+) \|", table, re.MULTILINE)}
    return {name for name in names if not GPU_BUILDS.match(name)}


def test_the_pages_list_of_core_packages_is_what_the_core_brings(clean):
    """By name: sizes differ from one platform and one build of torch to the next."""
    table = core_table(clean)
    assert names_in(rewritten("core", table)) == names_in(table)
    assert {"oneway", "torch", "numpy", "typer"} <= names_in(table)

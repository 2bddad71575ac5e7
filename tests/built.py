"""The distributions as they would be published: the sdist, and the wheel that is made from it."""

import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Built:
    """Where they lie, and the unpacked sdist that the wheel was made from."""

    sdist: Path
    wheel: Path
    unpacked: Path


def build(folder: Path) -> Built:
    """Build both, with no other file of the working tree at hand for the wheel."""
    _hatch("sdist", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    _hatch("wheel", folder, unpacked)
    (wheel,) = folder.glob("*.whl")
    return Built(sdist, wheel, unpacked)


def _hatch(target: str, folder: Path, source: Path) -> None:
    subprocess.run(  # noqa: S603  our own interpreter and arguments
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )

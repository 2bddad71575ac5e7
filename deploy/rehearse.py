"""Run the steps of the Dockerfile without Docker, in a folder, and serve from what they leave.

The server runs as the image's user on a file system that nobody can write to, but for its state.
That checks the installation, its pins, what is copied, the environment, the entry point and the
health check; not the base image and its users. As root on Linux: python deploy/rehearse.py
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

MODEL = "import torch\n\ndef build():\n    return torch.nn.Linear(4, 3)\n"
SERVED = ["m:build", "--outputs=logits", "--input-shape=4", "--defense=rounding", "--device=cpu"]
SECONDS = 120


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, with what stands behind each."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


def build(folder: Path, arguments: dict[str, str]) -> dict[str, str]:
    """Take every step, with ``/`` as a folder; return the last stage's instructions."""
    source = folder / "source"
    last: dict[str, str] = {}
    source.mkdir()
    for name, rest in instructions():
        words = shlex.split(rest)
        if name == "FROM":
            last = {}
        elif name == "ARG":
            key, _, value = rest.partition("=")
            arguments.setdefault(key, value)
        elif name == "COPY" and not words[0].startswith("--from"):
            for word in words[:-1]:
                subprocess.run(["cp", "-r", ROOT / word, source], check=True)  # noqa: S603, S607
        elif name == "RUN":
            command = rest.replace("/opt/", f"{folder}/opt/").replace(" /state", f" {folder}/state")
            print(f"RUN {command}", flush=True)
            subprocess.run(  # noqa: S603  the Dockerfile's own steps
                ["/bin/sh", "-ec", command], cwd=source, env={**os.environ, **arguments}, check=True
            )
        last[name] = rest
    return last


def locked(command: Sequence[str], user: str) -> list[str]:
    """Return a command that runs as a user and can write to no file."""
    setpriv = f"setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs"
    lock = "mount --make-rprivate / && mount -o remount,bind,ro /"
    return ["unshare", "--mount", "sh", "-c", f"{lock} && exec {setpriv} {shlex.join(command)}"]


def main() -> None:
    """Build, serve and ask; exit 1 if the health check does not say so."""
    arguments = dict(pair.split("=", 1) for pair in sys.argv[1:])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        folder.chmod(0o755)
        image = build(folder, arguments)
        models = folder / "models"
        models.mkdir()
        (models / "m.py").write_text(MODEL)
        told = image["ENV"].replace("/opt/", f"{folder}/opt/").replace("$PATH", os.environ["PATH"])
        environment = dict(pair.split("=", 1) for pair in shlex.split(told))
        user = image["USER"].partition(":")[0]
        command = locked([*json.loads(image["ENTRYPOINT"]), *SERVED], user)
        check = json.loads(image["HEALTHCHECK"].partition("CMD ")[2])
        server = subprocess.Popen(command, cwd=models, env=environment)  # noqa: S603
        try:
            until, healthy = time.monotonic() + SECONDS, False
            while not healthy and server.poll() is None and time.monotonic() < until:
                time.sleep(1)
                healthy = subprocess.run(check, env=environment, check=False).returncode == 0  # noqa: S603
        finally:
            server.terminate()
        print(f"healthy: {healthy}, exit code after SIGTERM: {server.wait(30)}")
    sys.exit(not healthy)


if __name__ == "__main__":
    main()

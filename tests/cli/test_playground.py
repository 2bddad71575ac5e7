"""`oneway playground` as a user starts and ends it: an address, an error, Ctrl-C."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("mlxtend", reason="needs `pip install 'oneway[playground]'`")

ONEWAY = [sys.executable, "-c", "from oneway.cli.main import app; app()", "playground"]


@contextlib.contextmanager
def started(folder, *arguments):
    """Start the playground; give its process, once it has said something."""
    process = subprocess.Popen(  # noqa: S603  our own command
        [*ONEWAY, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # As from a terminal: a job in the background would not hear Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_it_says_where_it_is_and_answers_while_it_starts_and_ends_on_ctrl_c(tmp_path):
    with started(tmp_path, "--no-open", "--port", "0") as process:
        said = process.stdout.readline()
        found = re.fullmatch(r"playground at (http://127\.0\.0\.1:\d+/)\n", said)
        assert found, said + process.stderr.read()
        with urllib.request.urlopen(f"{found[1]}api/state") as answer:  # noqa: S310
            assert "ready" in json.load(answer)
        with urllib.request.urlopen(found[1]) as answer:  # noqa: S310
            assert "What an attacker sees" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback" not in process.stderr.read()


def test_a_port_that_is_taken_is_refused_with_the_remedy(tmp_path, oneway):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = oneway("playground", "--no-open", "--port", port, "--cache", tmp_path)
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr
    assert "Pass --port 0" in result.stderr


def test_a_missing_package_is_named_with_the_extra_that_installs_it(oneway, monkeypatch):
    for package in ("mlxtend", "starlette", "uvicorn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            result = oneway("playground", "--no-open")
        assert result.exit_code == 2, package
        assert "pip install 'oneway[playground]'" in result.stderr

"""Measure the playground: from its start to the first answer, and from a change to what is painted.

The first answer: a browser is open, the command starts with an empty cache, and the page is opened
as soon as the command says where it is. Three starts.

Changes, while an attacker trains:

a server process, and Chromium beside it: the page's own clock runs from the event of a slider to
after the next paint. The server's time is that of one request over loopback. All along, an
attacker trains in the background, as it does when a visitor moves a slider. A first page, which is
not counted, warms server and browser up. Run `python benchmarks/playground.py`.

`--picture docs/images/playground.png` draws the picture of the documentation instead: the first
view, when an attacker has trained for each setting.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table

from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.playground.settings import DEFAULTS, SLIDERS, all_settings

GOAL_MS = 200
"""Most that a change may take, at the 99th percentile."""

FIRST_GOAL_MS = 10_000
"""Most that the first answer may take."""

STARTS = 3


@contextmanager
def serving(cache: Path) -> Iterator[str]:
    """Run `oneway playground` until the block ends; yield its address as soon as it is known."""
    command = [sys.executable, "-c", "from oneway.cli.main import app; app()", "playground"]
    process = subprocess.Popen(  # noqa: S603  our own command
        [*command, "--no-open", "--port", "0", "--cache", str(cache)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://\S+/", process.stdout.readline())
        assert address, "the playground did not start"
        yield address[0]
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, body: Any = None) -> Any:
    """Send a request to the server, and return its JSON answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310  our own server
        return json.load(answer)


@contextmanager
def training(address: str) -> Iterator[None]:
    """Keep an attacker in training until the block ends; never twice for one setting."""
    settings = iter(all_settings("adversarial-noise")[::-1])
    done, current = threading.Event(), next(settings).as_json()
    while not ask(f"{address}api/state")["ready"]:
        time.sleep(0.2)

    def train_on() -> None:
        nonlocal current
        ask(f"{address}api/examine", current)
        while not done.wait(0.1):
            state = ask(f"{address}api/progress", current)["state"]
            if state in ("done", "failed"):
                current = next(settings).as_json()
            if state not in ("waiting", "working"):
                ask(f"{address}api/examine", current)

    thread = threading.Thread(target=train_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def first_answers(browser: Browser, starts: int) -> list[float]:
    """Return the milliseconds from the command to the first painted answer, of several starts."""
    taken = []
    for _ in range(starts):
        page = browser.new_page(viewport={"width": 1366, "height": 850})
        with TemporaryDirectory() as cache:
            begin = time.perf_counter()
            with serving(Path(cache)) as address:
                page.goto(address)
                page.wait_for_selector("body[data-state=shown]")
                taken.append(1000 * (time.perf_counter() - begin))
                page.close()
    return taken


def server_times(address: str, defense: str, changes: int) -> list[float]:
    """Return the milliseconds of requests for one defense's answers, at all its positions."""
    settings = itertools.cycle(setting.as_json() for setting in all_settings(defense)[::-7])
    taken = []
    for number in range(changes):
        body = {"query": {"sample": number % 16}, "settings": [next(settings)]}
        begin = time.perf_counter()
        ask(f"{address}api/answers", body)
        taken.append(1000 * (time.perf_counter() - begin))
    return taken


def page_times(page: Page, address: str, defense: str, slider: str, changes: int) -> list[float]:
    """Move a slider to and fro; return the milliseconds from each event to after the paint."""
    page.goto("about:blank")
    page.goto(f"{address}#view=one&defense={defense}&sample=3")
    page.wait_for_selector("body[data-state=shown]")
    positions = len(SLIDERS[defense][slider])
    at = SLIDERS[defense][slider].index(DEFAULTS[defense][slider])
    moves = [place for place in range(positions) if place != at]
    for number in range(changes):
        page.locator(f"#{slider}").fill(str(moves[number % len(moves)]))
        page.wait_for_selector("body[data-state=shown]")
    # The first is the page's own beginning.
    durations: list[float] = page.evaluate(
        "performance.getEntriesByName('change to paint').map(entry => entry.duration)"
    )
    return durations[1:]


def record_of(where: str, defense: str, slider: str, taken: list[float]) -> dict[str, Any]:
    """Return the record of one series of times, in milliseconds."""
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {
        "where": where,
        "defense": defense,
        "slider": slider,
        "changes": len(taken),
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "most_ms": max(taken),
    }


def draw(cache: Path, chromium: str, picture: Path) -> None:
    """Write a picture of the first view, when an attacker has trained for each setting."""
    with serving(cache) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1366, "height": 850})
        page.set_default_timeout(600_000)
        page.goto(address)
        page.wait_for_selector("body[data-attackers=done][data-state=shown]")
        page.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Measure and print; exit 1 if the first answer or a 99th percentile misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=200, help="changes of each slider")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, help="also write records as JSON Lines")
    parser.add_argument("--picture", type=Path, help="draw the page, and measure nothing")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "needs a browser: chromium or google-chrome"
    if options.picture is not None:
        draw(options.cache, chromium, options.picture)
        return
    records = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        records.append(record_of("first answer", "", "", first_answers(browser, STARTS)))
        browser.close()
    with serving(options.cache) as address, training(address), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        warm = browser.new_page(viewport={"width": 1280, "height": 900})
        page_times(warm, address, "rounding", "decimals", 20)
        warm.close()
        for defense in SLIDERS:
            taken = server_times(address, defense, options.changes)
            records.append(record_of("server", defense, "", taken))
            for slider in SLIDERS[defense]:
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                taken = page_times(page, address, defense, slider, options.changes)
                records.append(record_of("page", defense, slider, taken))
                page.close()
        browser.close()
    table = Table(title="milliseconds, one thread for answers while another trains an attacker")
    for column in records[0]:
        table.add_column(column, justify="right")
    for record in records:
        table.add_row(*(f"{v:.0f}" if isinstance(v, float) else str(v) for v in record.values()))
    Console(width=120).print(table)
    if options.out is not None:
        torch.set_num_threads(1)
        facts = origin()
        load = os.getloadavg()[0]
        write_json_lines(
            options.out,
            [{**record, "load_average": load, **facts} for record in records],
        )
    first, *changes = records
    sys.exit(first["most_ms"] > FIRST_GOAL_MS or any(each["p99_ms"] > GOAL_MS for each in changes))


if __name__ == "__main__":
    main()

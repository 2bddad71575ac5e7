"""docs/serving.md: every command starts, every curl is sent, every answer is as printed."""

import json
import os
import re
import shlex
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import trustme
from typer.main import get_command

from endpoints import as_json
from endpoints import running as upstream_running
from guarded_servers import logged
from oneway.cli.main import app
from oneway.serving import ServingSettings
from oneway.serving.running import server_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"


def settings_table() -> str:
    rows = ["| setting | default | |", "| --- | --- | --- |"]
    for name, field in ServingSettings.model_fields.items():
        default = "" if field.default is None else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def figures_table() -> str:
    """Return the table of the stored load test."""
    path = ROOT / "results" / "bench-serving.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    bare = records[0]
    rows = [
        "| guard | queries a second | of unguarded | CPU ms a query | CPU, unguarded / guarded | "
        "p50, ms | p99, ms | flips | leaks | memory, MiB |",
        "| --- " * 10 + "|",
    ]
    for one in records:
        cells = [
            one["guard"],
            f"{one['queries_per_second']:.0f}",
            f"{one['of_unguarded']:.2f}",
            f"{one['cpu_ms_per_query']:.2f}",
            f"{bare['cpu_ms_per_query'] / one['cpu_ms_per_query']:.2f}",
            f"{one['p50_ms']:.0f}",
            f"{one['p99_ms']:.0f}",
            str(one["flips"]),
            str(one["leaks"]),
            f"{one['memory_first_mib']:.0f} to {one['memory_last_mib']:.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def predict(asked):
    """Answer as the plain server of the page does: scores, a label, and something else."""
    rows = []
    for query in asked.json["instances"]:
        logits = [query[0], query[1], query[2] + query[3]]
        grown = [2.718281828459045**logit for logit in logits]
        scores = [one / sum(grown) for one in grown]
        rows.append({"scores": scores, "label": scores.index(max(scores)), "logits": logits})
    return as_json({"predictions": rows})


class Session:
    """Runs the page's commands in one folder, with other ports than are printed."""

    def __init__(self, stack: ExitStack, folder: Path):
        self.stack, self.folder, self.moved = stack, folder, {}

    def moved_to(self, text: str) -> str:
        for printed, real in self.moved.items():
            text = text.replace(f"localhost:{printed}", f"localhost:{real}")
        return text

    def serve(self, words: list[str], monkeypatch) -> None:
        """Run a command that serves, in this process; it ends with the session."""
        served = []
        monkeypatch.setattr("oneway.serving.run", lambda *given, **_: served.extend(given))
        printed = next((word[5:] for word in words if word.startswith("port=")), "8000")
        words = ["port=0" if word.startswith("port=") else word for word in words]
        words += [] if "port=0" in words else ["--setting", "port=0"]
        get_command(app).main(words[1:], standalone_mode=False)
        asgi, how, listener = served
        self.moved[printed] = listener.getsockname()[1]
        started = threading.Event()
        server = server_of(asgi, how, started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        self.stack.callback(listener.close)
        self.stack.callback(thread.join)
        self.stack.callback(setattr, server, "should_exit", True)
        assert started.wait(30)

    def curl(self, words: list[str]) -> object:
        """Send what `curl` would."""
        url, body, verify, headers = "", None, True, {}
        rest = iter(words[1:])
        for word in rest:
            if word == "-d":
                body = next(rest)
            elif word == "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value.replace("$(cat token)", self.read("token"))
            elif word == "--cacert":
                verify = str(self.folder / next(rest))
            else:
                assert not word.startswith("-"), word
                url = word if "://" in word else f"http://{word}"
        method = "GET" if body is None else "POST"
        with httpx.Client(trust_env=False, verify=verify) as client:
            answer = client.request(method, self.moved_to(url), content=body, headers=headers)
        return answer.json()

    def read(self, name: str) -> str:
        return (self.folder / name).read_text().strip()


@pytest.fixture
def session(tmp_path, monkeypatch):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "key").write_text("0123456789abcdef" * 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(logged())
        plain = stack.enter_context(upstream_running(predict))
        opened = Session(stack, tmp_path)
        opened.moved["9000"] = plain.address.rpartition(":")[2]
        yield opened


def test_the_page_is_so(session, monkeypatch):
    """In the order of the page; with ONEWAY_WRITE_DOCS=1 the answers are written into it."""
    page, answer, told = PAGE, None, 0
    for language, block in BLOCKS:
        if language == "python":
            (session.folder / "flowers.py").write_text(block)
        elif language == "json":
            assert answer is not None
            text = json.dumps(answer) + "\n"
            if WRITE:
                page = page.replace(f"```json\n{block}```", f"```json\n{text}```", 1)
            else:
                assert json.loads(block) == answer
            told, answer = told + 1, None
        else:
            assert answer is None, "every curl has its answer"
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(session.moved_to(line))
                if words[0] == "curl":
                    answer = session.curl(words)
                elif words[0] == "openssl":
                    assert words == ["openssl", "rand", "-hex", "32", ">", "token"]
                    (session.folder / "token").write_text("ab" * 32 + "\n")
                else:
                    assert words[0] == "oneway"
                    session.serve(words, monkeypatch)
    assert told >= 7
    if WRITE:
        table = f"<!-- settings -->\n{settings_table()}\n<!-- end of settings -->"
        page = re.sub(r"<!-- settings -->.*<!-- end of settings -->", table, page, flags=re.S)
        table = f"<!-- figures -->\n{figures_table()}\n<!-- end of figures -->"
        page = re.sub(r"<!-- figures -->.*<!-- end of figures -->", table, page, flags=re.S)
        (ROOT / "docs" / "serving.md").write_text(page, encoding="utf-8")


def test_the_settings_of_the_page_are_all_there_are():
    (table,) = re.findall(r"<!-- settings -->\n(.*)\n<!-- end of settings -->", PAGE, flags=re.S)
    assert table == settings_table()


def test_the_figures_of_the_page_are_the_stored_ones():
    (table,) = re.findall(r"<!-- figures -->\n(.*)\n<!-- end of figures -->", PAGE, flags=re.S)
    assert table == figures_table()


def test_settings_and_options_that_the_page_names_exist():
    options = {
        name
        for command in ("serve", "proxy")
        for option in get_command(app).commands[command].params
        for name in option.opts
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert named - {"--cacert"} <= options
    assert options - named <= {
        "--help", "--model-option", "--probe", "--device", "model", "upstream",
    }  # fmt: skip
    for name in re.findall(
        r"--setting (\w+)=|`((?:max|timeout|shutdown|upstream|batch)_\w+)", PAGE
    ):
        assert (name[0] or name[1]) in ServingSettings.model_fields


@pytest.mark.parametrize("page", ["serving.md", "security.md"])
def test_links_lead_to_files(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []

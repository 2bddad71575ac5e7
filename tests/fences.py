"""Code blocks of the documentation, and how they run: each page from top to bottom, in one folder.

What may be said about a block stands in an HTML comment before it, which readers do not see:

- ``<!-- file: NAME -->``: the block is a file of that name, and is written into the folder.
- ``<!-- parse only: WHY -->``: commands are held against the real command line, and not run.
- ``<!-- figures vary -->``: nearly all words of an output must be the same, its numbers need not.

A ``text`` or ``json`` block right after one that runs is what that one prints. With
ONEWAY_WRITE_DOCS=1 it is written into the page.
"""

import contextlib
import difflib
import io
import json
import os
import re
import shlex
import ssl
import subprocess
import sys
import textwrap
import threading
import tomllib
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from markdown_it import MarkdownIt

from endpoints import PATIENCE
from invoking import all_commands, invoke

ROOT = Path(__file__).parents[1]
WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"
LANGUAGES = ("python", "bash", "toml", "json", "yaml", "text")
NOTE = re.compile(r"<!-- (file|parse only|figures vary)(?:: (.+?))? -->")
WIDTH = 112
"""Columns of an output."""

SERVING = ("serve",)
ALIKE = 0.8
"""How much of an output whose figures vary must be as it is printed: rows may come and go."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: Its page, relative to the repository.
        line: Where it begins, from 1.
        language: What stands after the fence.
        text: What is in it.
        notes: What the comment before it says, by kind.
        follows: Whether nothing but a comment stands between it and the block before.
        section: The heading of the second level above it; empty at a page's beginning.
    """

    page: str
    line: int
    language: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)
    follows: bool = False
    section: str = ""

    @property
    def label(self) -> str:
        """How tests call it."""
        told = f"{self.page}:{self.line} {self.language}"
        return f"{told} (parsed only)" if "parse only" in self.notes else told


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page; directives of the site are none."""
    source = (ROOT / page).read_text(encoding="utf-8")
    if "```" not in source:  # a third of the pages, which need not be parsed
        return []
    found, notes, adjacent, section = list[Block](), dict[str, str](), False, ""
    tokens = MarkdownIt("commonmark").parse(source)
    for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == "heading_open" and token.tag == "h2":
            section = following.content
        if token.type == "html_block":
            notes |= {kind: told or "" for kind, told in NOTE.findall(token.content)}
        elif token.type == "fence" and not token.info.startswith("{"):
            assert token.map
            language = token.info.strip()
            at = token.map[0] + 1
            found.append(Block(page, at, language, token.content, dict(notes), adjacent, section))
            notes.clear()
            adjacent = True
        else:
            notes.clear()
            adjacent = False
    return found


def commands_of(text: str) -> list[list[str]]:
    """Return the commands of a shell block as words, comments left out."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# --- Commands that are parsed ---------------------------------------------------------------------


def check_command(words: list[str]) -> None:
    """Hold a command against what there is: options of oneway, targets of make, files, extras."""
    if words[0] == "oneway":
        group: Any = all_commands()
        rest, name = words[1 : words.index(">") if ">" in words else None], "oneway"
        while getattr(group, "commands", None):
            name, *rest = rest
            group = group.commands[name]
        group.make_context(name, rest)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
    elif words[0] == "pip":
        assert words[1] in ("install", "download")
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extras in re.findall(r"oneway\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(known["optional-dependencies"])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        spoken = (ROOT / words[1]).read_text(encoding="utf-8")
        assert [word for word in words[2:] if word.startswith("--") and word not in spoken] == []
    else:
        raise AssertionError(f"no rule for {words[0]!r}: add one to tests/fences.py")


# --- Pages that run -------------------------------------------------------------------------------


@dataclass
class PageRun:
    """One page, as a reader works through it: names stay, files stay, servers stay up.

    Attributes:
        page: Relative to the repository.
        folder: Where its commands run.
        names: What its Python blocks have defined.
        moved: Printed ports, and those that were taken instead.
        stack: Closes what it opened.
        replaced: Words of a block that are replaced before it runs, such as addresses.
        left_out: Says which blocks a test of their own runs.
    """

    page: str
    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)
    replaced: dict[str, str] = field(default_factory=dict)
    left_out: Callable[[Block], bool] = lambda _: False
    environment: dict[str, str] = field(default_factory=dict)
    done: int = 0
    output: str | None = None
    written: list[tuple[Block, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the page; its Python code is a module of its own, as pickles expect."""
        self.blocks = blocks_of(self.page)
        module = types.ModuleType("page_" + re.sub(r"\W", "_", self.page))
        sys.modules[module.__name__] = module
        self.stack.callback(sys.modules.pop, module.__name__, None)
        self.names = module.__dict__

    def reach(self, position: int) -> None:
        """Run up to and with a block; what ran already does not run again."""
        while self.done <= position:
            block = self.blocks[self.done]
            self.done += 1
            if not self.left_out(block):
                torch.manual_seed(0)
                try:
                    with self._inside():
                        self._run(block)
                except BaseException as error:
                    error.add_note(f"in {block.label}")
                    raise

    @contextlib.contextmanager
    def _inside(self) -> Any:
        before, path, environment = Path.cwd(), list(sys.path), dict(os.environ)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        os.environ.update({"COLUMNS": str(WIDTH), "NO_COLOR": "1"} | self.environment)
        try:
            yield
        finally:
            os.chdir(before)
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)

    def _run(self, block: Block) -> None:
        assert block.language in LANGUAGES, f"{block.label}: name its language"
        if "file" in block.notes:
            path = self.folder / block.notes["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._with_replaced(block.text), encoding="utf-8")
            if block.language != "python":
                self._check_data(block)
        elif block.language == "bash":
            self._run_commands(block)
        elif block.language == "python":
            self._run_python(block)
        elif block.follows and self.output is not None:
            self._compare(block)
        else:
            self._check_data(block)

    def _run_python(self, block: Block) -> None:
        text = self._moved_to(self._with_replaced(block.text))
        code = compile("\n" * block.line + text, str(ROOT / self.page), "exec")
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            exec(code, self.names)  # noqa: S102  our own page
        self.output = told.getvalue()

    def _run_commands(self, block: Block) -> None:
        self.output, told = None, []
        for words in commands_of(self._moved_to(self._with_replaced(block.text))):
            if "parse only" in block.notes:
                check_command(words)
                continue
            told.append(self._run_command(words))
        if told:
            self.output = "".join(part for part in told if part)

    def _run_command(self, words: list[str]) -> str | None:
        if words[0] == "oneway" and words[1] in SERVING:
            return self._serve(words)
        if words[0] == "oneway":
            expected = 0
            if "||" in words:  # a command whose exit code is told after it
                words, expected = words[: words.index("||")], 1
            done = invoke(*words[1:])
            if done.exit_code != expected:
                raise AssertionError(f"{shlex.join(words)}\n{done.output}") from done.exception
            return done.stdout
        if words[0] == "curl":
            return self._curl(words)
        if words[0] == "openssl":
            assert words == ["openssl", "rand", "-hex", "32", ">", "token"]
            (self.folder / "token").write_text("ab" * 32 + "\n")
            return None
        if words[0] == "python":
            ran = subprocess.run(  # noqa: S603  our own examples
                [sys.executable, *words[1:]], capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stderr
            return ran.stdout
        check_command(words)  # make and pip
        return None

    # Servers run in this process, on other ports than are printed.

    def _with_replaced(self, text: str) -> str:
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text

    def _moved_to(self, text: str) -> str:
        for printed, real in self.moved.items():
            text = text.replace(f"localhost:{printed}", f"localhost:{real}")
        return text

    def _serve(self, words: list[str]) -> None:
        import oneway.serving
        from oneway.serving.running import server_of

        printed = "8000"
        if "--port" in words:
            at = words.index("--port")
            printed = words[at + 1]
            words = [*words[:at], *words[at + 2 :]]
        words, spoken = [*words, "--port", "0"], None
        if "--grpc-port" in words:
            at = words.index("--grpc-port") + 1
            spoken, words[at] = words[at], "0"
        served: list[Any] = []
        original = oneway.serving.run
        oneway.serving.run = lambda *given, **_: served.extend(given)  # type: ignore[assignment]
        try:
            all_commands().main(words[1:], standalone_mode=False)
        finally:
            oneway.serving.run = original
        asgi, how, listener = served
        self.moved[printed] = str(listener.getsockname()[1])
        started = threading.Event()
        server = server_of(asgi, how, started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        self.stack.callback(listener.close)
        self.stack.callback(thread.join)
        self.stack.callback(setattr, server, "should_exit", True)
        assert started.wait(PATIENCE)
        if spoken is not None:
            self.moved[spoken] = str(asgi.grpc.port)

    def _curl(self, words: list[str]) -> str:
        url, body, headers = "", None, dict[str, str]()
        verify: ssl.SSLContext | bool = True
        rest = iter(words[1:])
        for word in rest:
            if word == "-d":
                body = next(rest)
                body = (self.folder / body[1:]).read_text() if body.startswith("@") else body
            elif word == "-H":
                name, _, value = next(rest).partition(": ")
                secret = self.folder / "token"
                headers[name] = value.replace(
                    "$(cat token)", secret.read_text().strip() if secret.is_file() else ""
                )
            elif word == "--cacert":
                verify = ssl.create_default_context(cafile=self.folder / next(rest))
            else:
                assert not word.startswith("-"), word
                url = word if "://" in word else f"http://{word}"
        with httpx.Client(trust_env=False, verify=verify) as client:
            answer = client.request(
                "GET" if body is None else "POST", url, content=body, headers=headers
            )
        return json.dumps(answer.json()) + "\n"

    # Outputs and data.

    def _compare(self, block: Block) -> None:
        found, self.output = str(self.output), None
        if WRITE:
            told = "".join(f"{line}\n" for line in _wrapped(found))
            self.written.append((block, told))
        elif block.language == "json":
            assert _shape(block, json.loads(block.text)) == _shape(block, json.loads(found))
        elif "figures vary" in block.notes:
            both = [NUMBER.sub("#", text).split() for text in (block.text, found)]
            alike = difflib.SequenceMatcher(None, *both, autojunk=False).ratio()
            assert alike >= ALIKE, f"{block.label} is now:\n{found}"
        else:
            assert block.text.split() == found.split(), f"{block.label} is now:\n{found}"

    def _check_data(self, block: Block) -> None:
        if block.language == "toml":
            check_toml(tomllib.loads(block.text))
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)

    def close(self) -> None:
        """Stop servers; with ONEWAY_WRITE_DOCS=1, write what was printed into the page."""
        self.stack.close()
        if self.written:
            path = ROOT / self.page
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            for block, text in sorted(self.written, key=lambda one: -one[0].line):
                lines[block.line : block.line + block.text.count("\n")] = [text]
            path.write_text("".join(lines), encoding="utf-8")


def _wrapped(text: str) -> Iterator[str]:
    """Yield lines as a terminal would break them; a table's are left alone."""
    for line in text.strip("\n").splitlines():
        plain = len(line) > WIDTH and not line.startswith((" ", "{"))
        yield from textwrap.wrap(line, WIDTH, break_on_hyphens=False) if plain else [line.rstrip()]


def _shape(block: Block, value: Any) -> Any:
    """Return what is compared of an answer: all of it, or all but its numbers if they vary."""
    if isinstance(value, dict):
        return {key: _shape(block, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shape(block, one) for one in value]
    if "figures vary" not in block.notes:
        return value
    if isinstance(value, float):
        return 0.0
    # A codebook's version is a hash of its numbers, whose last bits vary with the processor.
    return re.sub(r"^[0-9a-f]{16}$", "0" * 16, value) if isinstance(value, str) else value


def check_toml(values: dict[str, Any]) -> None:
    """Refuse rows of an experiment that name a defense, an option or an attack there is not."""
    from oneway.benchmark.spec import DataSpec, build_from
    from oneway.evaluation import ReleaseSpec, sketch_defense

    if "name" in values and "releases" in values:
        from oneway.benchmark import ExperimentSpec
        from oneway.benchmark.entries import Entry

        if "data" not in values:
            for release in build_from(Entry, values, "page").releases:
                if release.defense:
                    release.released("digits", 0, Path())
            return

        build_from(ExperimentSpec, {k: v for k, v in values.items() if k != "presets"}, "page")
        return
    for row in values.get("releases", ()):
        sketch_defense(build_from(ReleaseSpec, row, "page"))
    if "data" in values:
        build_from(DataSpec, values["data"], "page")


Prepare = Callable[[PageRun], None]

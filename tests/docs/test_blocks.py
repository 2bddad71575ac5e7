"""Every code block of the README and the documentation runs, in the order of its page."""

import functools
import re

import numpy as np
import pytest
import trustme

from auditing.audits import search_little
from endpoints import OpenInferenceServer, as_json, running
from fences import LANGUAGES, ROOT, WRITE, PageRun, blocks_of, check_command, commands_of
from guarded_servers import logged
from invoking import all_commands
from oneway.auditing import AuditSettings

PAGES = sorted(
    [path.name for path in ROOT.glob("*.md")]
    + [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
)
INDEX = "docs/defenses/index.md"
BLOCKS = {page: blocks_of(page) for page in PAGES}
WORKING = ("README.md", "docs/codebook.md", "docs/versions.md")
"""Pages whose blocks work on the folder ``work/``, beside those of defenses."""

MOST_PARSED = 0.077
"""Largest share of the blocks that are only held against the command line."""


def by_itself(block):
    """Say whether a test of its page runs it, with the server that it is about."""
    return block.page == "docs/recipes.md" or (block.page, block.section) == RAY


RAY = ("docs/adapters.md", "Ray")


@pytest.fixture(scope="module", autouse=True)
def _little_search():
    """Of the figures of pages no test asks more than that there are some."""
    with pytest.MonkeyPatch.context() as patch:
        if not WRITE:
            search_little(patch)
            small = functools.partial(AuditSettings, first_epochs=8, most_epochs=8, widths=(8,))
            patch.setattr(AuditSettings, "for_rows", lambda _, **others: small(**others))
        yield


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """The page that says how the folder is made which others work on, read to its end."""
    pytest.importorskip("mlxtend")
    shorter = {} if WRITE else {"--epochs 4": "--epochs 1"}
    run = PageRun(INDEX, tmp_path_factory.mktemp("work"), replaced=shorter)
    run.reach(len(run.blocks) - 1)
    yield run
    run.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All pages that were begun; they end together."""
    begun: dict[str, PageRun] = {}

    def run_of(page):
        if page not in begun:
            begun[page] = PageRun(page, tmp_path_factory.mktemp("page"), left_out=by_itself)
        return begun[page]

    yield run_of
    for one in begun.values():
        one.close()


@pytest.fixture
def prepared(runs, request):
    """What a page takes for granted: files, keys, and servers that are there already."""

    def page(name):
        if name == INDEX:
            return request.getfixturevalue("work")
        run = runs(name)
        if run.done == 0:
            if name in WORKING or name.startswith("docs/defenses/"):
                made = request.getfixturevalue("work").folder / "work"
                (run.folder / "work").symlink_to(made)
            PREPARED.get(name, lambda _: None)(run)
            run.replaced |= {} if WRITE else SHORTER.get(name, {})
        return run

    return page


def flowers(asked):
    """Answer as the plain server of docs/serving.md does: scores, a label, and something else."""
    rows = []
    for query in asked.json["instances"]:
        logits = [query[0], query[1], query[2] + query[3]]
        grown = [2.718281828459045**logit for logit in logits]
        scores = [one / sum(grown) for one in grown]
        rows.append({"scores": scores, "label": scores.index(max(scores)), "logits": logits})
    return as_json({"predictions": rows})


def prepare_serving(run):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(run.folder / "cert.pem")
    issued.private_key_pem.write_to_path(run.folder / "key.pem")
    authority.cert_pem.write_to_path(run.folder / "ca.pem")
    (run.folder / "key").write_text("0123456789abcdef" * 4)
    run.stack.enter_context(logged())
    plain = run.stack.enter_context(running(flowers))
    run.moved["9000"] = plain.address.rpartition(":")[2]


def prepare_adapters(run):
    import runpy

    run.environment["ONEWAY_KEY"] = "0123456789abcdef"
    run.environment["HOME"] = str(run.folder)  # ART writes there when it is imported
    example = runpy.run_path(str(ROOT / "examples" / "guarded_onnx.py"))
    (run.folder / "model.onnx").write_bytes(example["small_model"]())
    shapes = [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    weights = np.random.default_rng(4).normal(size=(64, 3))

    def model(queries):
        grown = np.exp(queries.reshape(len(queries), -1) @ weights)
        return grown / grown.sum(1, keepdims=True)

    server = run.stack.enter_context(running(OpenInferenceServer(inputs=shapes, model=model)))
    run.replaced["https://host"] = server.address


PREPARED = {
    "docs/serving.md": prepare_serving,
    "docs/adapters.md": prepare_adapters,
}

SHORTER = {
    "docs/stealing.md": {"steps=50": "steps=5"},
    "docs/tutorials/researcher.md": {
        "[attackers]": "[attackers]\nmost_epochs = 2",
        "epochs = 24": "epochs = 1",
        "epochs=24": "epochs=1",
        "auxiliary = 700": "auxiliary = 500",
        "test = 400": "test = 200",
    },
}
"""What tests put in the place of what a page says, by page."""


@pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's, on pickles and examples
@pytest.mark.parametrize(
    "page", [page for page, found in BLOCKS.items() if not all(map(by_itself, found))]
)
def test_blocks_of_a_page_run_from_its_top_to_its_end(page, prepared):
    """But those that a test of their page runs, with the server that they are about."""
    prepared(page).reach(len(BLOCKS[page]) - 1)


def test_every_block_says_its_language():
    blocks = [block for found in BLOCKS.values() for block in found]
    unknown = [block.label for block in blocks if block.language not in LANGUAGES]
    assert unknown == []


def test_few_commands_are_only_parsed():
    can_run = ("python", "bash", "toml")
    blocks = [block for found in BLOCKS.values() for block in found if block.language in can_run]
    parsed = [block for block in blocks if "parse only" in block.notes]
    assert len(parsed) <= MOST_PARSED * len(blocks)
    assert all(block.notes["parse only"] for block in parsed), "say why"


INLINE = re.compile(r"(?<!`)`(oneway [a-z]+ [^`]*)`(?!`)")


def test_commands_within_sentences_name_options_that_exist():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for command in INLINE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            for words in commands_of(command):
                options = [word for word in words if word.startswith("--")]
                if options:
                    assert unknown_options(words, options) == [], (page, command)


def unknown_options(words, options):
    group, rest = all_commands(), words[1:]
    while getattr(group, "commands", None) and rest and rest[0] in group.commands:
        group, rest = group.commands[rest[0]], rest[1:]
    known = {name for option in group.params for name in (*option.opts, *option.secondary_opts)}
    known.add("--help")
    return [option for option in options if option.partition("=")[0] not in known]


class TestTheRunnerItself:
    """A runner that finds nothing wrong would be worth nothing."""

    def run(self, tmp_path, monkeypatch, text):
        (tmp_path / "page.md").write_text(text, encoding="utf-8")
        monkeypatch.setattr("fences.ROOT", tmp_path)
        monkeypatch.setattr("fences.WRITE", False)
        run = PageRun("page.md", tmp_path)
        run.reach(len(run.blocks) - 1)
        return run

    def test_names_stay_down_a_page(self, tmp_path, monkeypatch):
        run = self.run(
            tmp_path, monkeypatch, "```python\na = 1\n```\n\n```python\nb = a + 1\n```\n"
        )
        assert run.names["b"] == 2

    def test_an_error_names_page_and_line(self, tmp_path, monkeypatch):
        with pytest.raises(ZeroDivisionError) as told:
            self.run(tmp_path, monkeypatch, "# A\n\n```python\na = 1\n1 / 0\n```\n")
        last = told.traceback[-1]
        assert (last.path.name, last.lineno + 1) == ("page.md", 5)

    def test_another_output_is_refused(self, tmp_path, monkeypatch):
        page = "```python\nprint('a is', 1)\n```\n\n```text\na is {}\n```\n"
        self.run(tmp_path, monkeypatch, page.format(1))
        with pytest.raises(AssertionError):
            self.run(tmp_path, monkeypatch, page.format(2))
        vary = page.replace("```text", "<!-- figures vary -->\n```text")
        self.run(tmp_path, monkeypatch, vary.format(2))
        with pytest.raises(AssertionError):
            self.run(tmp_path, monkeypatch, vary.format("two"))

    def test_a_file_is_written_and_not_run(self, tmp_path, monkeypatch):
        self.run(tmp_path, monkeypatch, "<!-- file: a/b.py -->\n```python\n1 / 0\n```\n")
        assert (tmp_path / "a" / "b.py").read_text() == "1 / 0\n"

    def test_commands_that_are_parsed_are_held_against_what_there_is(self):
        for wrong in (
            "oneway defend a.npz --out b.npy --optoin c=1",
            "oneway defnd a.npz --out b.npy",
            "oneway train targte --out work",
            "pip install 'oneway[speed]'",
            "make docz",
            "python examples/lenett.py",
            "rm -r work",
        ):
            (words,) = commands_of(wrong)
            with pytest.raises((Exception, SystemExit)):
                check_command(words)

    def test_a_missing_language_is_refused(self, tmp_path, monkeypatch):
        with pytest.raises(AssertionError, match="language"):
            self.run(tmp_path, monkeypatch, "```\noneway demo\n```\n")

    def test_rows_of_an_experiment_are_held_against_the_registry(self, tmp_path, monkeypatch):
        row = '```toml\n[[releases]]\nname = "a"\ndefense = "{}"\n```\n'
        self.run(tmp_path, monkeypatch, row.format("rounding"))
        with pytest.raises(ValueError, match="rounding"):
            self.run(tmp_path, monkeypatch, row.format("roundign"))


def test_the_notes_of_blocks_are_understood():
    """A comment before a block that is misspelt would do nothing."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for note in re.findall(r"<!-- ([^>]+) -->\n```", text):
            part = f"<!-- end of {note} -->" in text or note.startswith("end of ")
            assert part or re.fullmatch(r"file: .+|parse only: .+|figures vary", note), (page, note)


def test_paths_of_the_repository_that_pages_name_exist():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        made = {block.notes.get("file") for block in BLOCKS[page]}
        named = re.findall(r"`((?:src|tests|examples|benchmarks|results)/[\w./-]+)`", text)
        assert [path for path in named if path not in made and not (ROOT / path).exists()] == []

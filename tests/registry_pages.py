"""What pages of defenses, attackers and commands say that code and records decide.

Each part stands in its page between ``<!-- NAME -->`` and ``<!-- end of NAME -->``. With
ONEWAY_WRITE_DOCS=1 the tests write it there; else they compare.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.main import get_command

from oneway.attacks import ATTACKS
from oneway.benchmark import Summary, summarise
from oneway.cli.main import app
from oneway.contracts import AttackerKnowledge
from oneway.defenses import (
    DEFENSES,
    TEST_SIGNALS,
    build_defense,
    needs_state,
    needs_surrogate,
    trained_defense,
    training_options,
)
from oneway.defenses.registry import declared_options
from oneway.evaluation import ReleaseRecord, read_records
from oneway.options import Option
from oneway.report.experiments import COLUMNS, spread

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

DATA = {
    ("leaderboard", "digits"): "digits",
    ("leaderboard", "smoothed"): "digits, smoothed labels",
    ("leaderboard", "faces"): "faces, smoothed labels",
    ("table1-mnist", "cpu"): "Table I, MNIST",
    ("table1-faces", "cpu"): "Table I, faces",
    ("table2-mnist", "cpu"): "Table II, MNIST",
    ("table2-faces", "cpu"): "Table II, faces",
}
"""What records are of, in the order of the tables."""

NEEDED = {"step_size": 0.1, "beta": 0.005}
"""Options without a default, to build a defense and ask what it promises."""

MEANINGS = {
    "images": "images of its own",
    "clean": "what the undefended service answered about them",
    "released": "what the defended service answers about them",
    "query": "the service itself, to ask",
    "simulated_defenses": "copies of the defense, with surrogates of its own",
    "differentiable_logits": "model and defense, with gradients",
}
"""What an attacker has, by the name in ``AttackerKnowledge``."""


def put(page: str, name: str, text: str) -> str:
    """Return a page with one of its generated parts replaced."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    assert page.count(begin) == page.count(end) == 1, (name, page[:40])
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}{end}{rest.partition(end)[2]}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- Facts ---------------------------------------------------------------------------------------


def _sketch(name: str, **options: Any) -> Any:
    required = [option.name for option in declared_options(name).values() if option.required]
    needed = {option: NEEDED[option] for option in required}
    given = {"state": nn.Identity(), "generator": torch.Generator()}
    return build_defense(name, {**needed, **options}, nn.Identity(), **given)


def _switches(name: str) -> list[dict[str, Any]]:
    known = declared_options(name)
    options = [{key: True} for key in ("keep_label", "label_guarded") if key in known]
    return options + ([{"search": "random-start"}] if "search" in known else [])


def _promise(name: str, attribute: str) -> str:
    """Say yes or no, and which option makes it otherwise."""
    usual = getattr(_sketch(name), attribute)
    other = [
        f"`{key} = {_toml(value)}`"
        for options in _switches(name)
        for key, value in options.items()
        if getattr(_sketch(name, **options), attribute) != usual
    ]
    told = "yes" if usual else "no"
    return f"{told}; with {other[0]}: {'no' if usual else 'yes'}" if other else told


def _material(name: str) -> str:
    if needs_surrogate(name):
        return "a surrogate inverter"
    if not needs_state(name):
        return "nothing"
    return trained_defense(name).fitted_to


def class_of(name: str) -> str:
    """Return the name that a defense is documented under."""
    kind: Any = DEFENSES[name]
    return f"{kind.__module__}.{kind.__qualname__}"


def defense_facts(name: str) -> str:
    """Return what a defense promises and needs."""
    rows = [
        ("name", f"`{name}`"),
        ("keeps the label", _promise(name, "keeps_label")),
        ("same query, same answer", _promise(name, "deterministic")),
        ("needs the query itself", _promise(name, "requires_input")),
        ("needs beforehand", _material(name)),
        ("class", f"`{class_of(name)}`"),
    ]
    return table(("", ""), rows)


def attack_facts(name: str) -> str:
    """Return what an attacker has."""
    attack = ATTACKS[name]
    source = inspect.getsource(type(attack))
    fields = [field.name for field in dataclasses.fields(AttackerKnowledge)]
    used = [field for field in fields if f"knowledge.{field}" in source and field in MEANINGS]
    rows = [
        ("name", f"`{name}`"),
        ("threat", attack.threat),
        ("knows", attack.knows),
        ("has", "; ".join(MEANINGS[field] for field in used)),
        ("trains decoders", "yes" if re.search(r"\btrain\(", source.split('"""')[-1]) else "no"),
        ("class", f"`oneway.attacks.{type(attack).__name__}`"),
    ]
    return table(("", ""), rows)


# --- Parameters ----------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Turn a docstring's markup into Markdown for a table's cell."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", "\\|")


def _rows(options: Iterable[Option]) -> list[tuple[str, ...]]:
    return [
        (
            f"`{option.name}`",
            "required" if option.required else f"`{_toml(option.default)}`",
            option.allowed,
            plain(option.help),
        )
        for option in options
    ]


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def parameters(name: str) -> str:
    """Return the options of a defense, of its constructor and of its training."""
    header = ("option", "default", "allowed", "what it sets")
    declared = declared_options(name)
    training = training_options(name, declared)
    own = [option for option in declared.values() if option.name not in training]
    text = table(header, _rows(own)) if own else ""
    if training:
        text += (
            "\nOptions of its training, given side by side with those:\n\n"
            if text
            else "All are of its training.\n\n"
        )
        text += table(header, _rows(training.values()))
    return text or "None.\n"


# --- Measured ------------------------------------------------------------------------------------


@cache
def summaries() -> Mapping[tuple[str, str], Sequence[Summary]]:
    """Return all stored experiments, each release over its seeds."""
    groups: dict[tuple[str, str], list[ReleaseRecord]] = {}
    for path in sorted((ROOT / "results").glob("*-seed*.jsonl")):
        for record in read_records(path):
            groups.setdefault((record.experiment, record.preset), []).append(record)
    assert set(groups) == set(DATA), "name new experiments in DATA"
    return {key: summarise(groups[key]) for key in DATA}


COLUMNS_SHOWN = {
    "L1": "L1 of probabilities",
    "G": "closed gap G",
    "G, tail": "G, least confident 5 %",
    "static": "static error",
    "retrained": "retrained error",
    "adaptive": "adaptive error",
}


def defense_measured(name: str) -> str:
    """Return a defense's rows of all stored experiments, with where they come from."""
    rows, sources = [], dict[str, None]()
    for key, found in summaries().items():
        for one in found:
            if one.record.defense == name:
                cells = [COLUMNS[column](one) for column in COLUMNS_SHOWN.values()]
                rows.append([one.release, DATA[key], *cells, str(len(one.seeds))])
                sources[_source(key, one)] = None
    if not rows:
        why = "it is no release; audits attack it as a control" if name in TEST_SIGNALS else ""
        return f"Not measured{': ' + why if why else ''}.\n"
    note = (
        "Means with 95 % intervals over so many seeds of splits, target, defense and attackers; a "
        "row with one seed is not to be quoted. [What the columns mean]"
        "(../explanation/measuring.md).\n"
    )
    return (
        table(("release", "data", *COLUMNS_SHOWN, "seeds"), rows)
        + f"\n{note}\n"
        + "".join(f"- {source}\n" for source in sources)
    )


def _source(key: tuple[str, str], one: Summary) -> str:
    experiment, preset = key
    data = one.record.spec["data"]
    if experiment == "leaderboard":
        made = f"oneway leaderboard --data {preset}"
    else:
        what, _, kind = experiment.partition("-")
        made = f"oneway reproduce {what} --data {kind} --preset {preset}"
    machine = one.environments[0]
    return (
        f"{DATA[key]}: {data['private']:,} private, {data['auxiliary']:,} auxiliary images, "
        f"{data['test']:,} queries; `{made}`; {machine.processor}, {machine.cores} cores, "
        f"{machine.threads} used, torch {machine.torch}"
    )


SHOWN = (
    "none",
    "rounding, 2 decimals",
    "codebook, 20 members",
    "adversarial noise, .1",
    "adversarial noise, .4",
    "adversarial noise",
    "Gaussian noise, 1 nat, label kept",
    "Dirichlet noise, 100, label kept",
    "one-parameter, 100",
    "MID, beta 0.005",
    "PPF, label kept",
)
"""Releases that an attacker's page shows."""


def identification_measured() -> str:
    """Return the shares of queries that matching identifies in some releases."""
    rows, sources = [], dict[str, None]()
    for key, found in summaries().items():
        for one in found:
            result = one.record.matching.get("true inputs")
            if result is not None and one.release in SHOWN:
                values = [
                    one.values.get(f"matching {which}") for which in ("true inputs", "noisy copies")
                ]
                cells = [spread(value, 1, 100) for value in values]
                chance = f"{100 * result.chance:.1f}"
                rows.append([one.release, DATA[key], *cells, chance, str(len(one.seeds))])
                sources[_source(key, one)] = None
    if not rows:
        return "Not measured in the stored records.\n"
    header = ("release", "data", "true inputs, %", "noisy copies, %", "by chance, %", "seeds")
    note = "Queries identified at rank 1, means with 95 % intervals over so many seeds.\n"
    return f"{table(header, rows)}\n{note}\n" + "".join(f"- {source}\n" for source in sources)


def attack_measured(name: str) -> str:
    """Return an attacker's errors on some releases, and how often it was the strongest."""
    if ATTACKS[name].threat == "identification":
        return identification_measured()
    rows, sources, strongest, attacked = [], dict[str, None](), 0, 0
    for key, found in summaries().items():
        for one in found:
            mine = one.values.get(f"error {name}")
            if mine is None:
                continue
            attacked += 1
            best = one.values["adaptive_error"].mean
            strongest += mine.mean <= best * 1.0005
            if one.release in SHOWN:
                cells = [spread(mine, 4)]
                cells += [
                    spread(one.values[value], 4)
                    for value in ("adaptive_error", "baseline clean", "baseline label")
                ]
                rows.append([one.release, DATA[key], *cells, str(len(one.seeds))])
                sources[_source(key, one)] = None
    if not rows:
        return "Not measured in the stored records.\n"
    share = f"The strongest of all, on average over seeds, on {strongest} of {attacked} releases."
    header = ("release", "data", "its error", "the strongest's", "E_clean", "E_label", "seeds")
    note = (
        "Mean squared errors per pixel, means with 95 % intervals over so many seeds; a lower one "
        "is a better attack.\n"
    )
    return (
        f"{share}\n\n"
        + table(header, rows)
        + f"\n{note}\n"
        + "".join(f"- {source}\n" for source in sources)
    )


# --- Overviews -----------------------------------------------------------------------------------


def lead(path: Path) -> str:
    """Return the first sentence below a page's title."""
    text = path.read_text(encoding="utf-8")
    paragraphs = [part for part in text.split("\n\n")[1:] if not part.startswith((">", "<!--"))]
    first = " ".join(paragraphs[0].split())
    sentence = re.match(r".+?\.(?= [A-Z]|$)", first)
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", sentence[0] if sentence else first)


def title(path: Path) -> str:
    """Return a page's title."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _short(promise: str) -> str:
    usual, _, other = promise.partition(";")
    return "optional" if other and usual == "no" else usual


def _gaps(name: str) -> Iterator[str]:
    """Return a defense's G on each data set of the leaderboard, over all its rows."""
    for preset in ("digits", "smoothed", "faces"):
        found = [
            one.values["closed_gap"].mean
            for one in summaries()["leaderboard", preset]
            if one.record.defense == name
        ]
        low, high = (
            (f"{round(edge(found), 2) + 0.0:.2f}" for edge in (min, max)) if found else ("-", "-")
        )
        yield low if low == high else f"{low} to {high}"


def defenses_table() -> str:
    """Return one row per defense that is one."""
    rows = []
    for name in DEFENSES:
        if name in TEST_SIGNALS:
            continue
        path = DOCS / "defenses" / f"{name}.md"
        rows.append(
            (
                f"[{title(path)}]({name}.md)",
                *(_short(_promise(name, promise)) for promise in ("keeps_label", "deterministic")),
                _promise(name, "requires_input"),
                _material(name),
                *_gaps(name),
            )
        )
    header = (
        *("defense", "keeps the label", "repeats", "needs the query", "needs beforehand"),
        *("G, digits", "smoothed", "faces"),
    )
    return table(header, rows)


def attacks_table() -> str:
    """Return one row per attacker."""
    rows = []
    for name in ATTACKS:
        path = DOCS / "attacks" / f"{name}.md"
        rows.append((f"[{title(path)}]({name}.md)", f"`{name}`", lead(path)))
    return table(("attacker", "name", "in short"), rows)


# --- Commands ------------------------------------------------------------------------------------


def commands() -> str:
    """Return every command with its options, as its help says them."""
    root: Any = get_command(app)
    return "\n".join(_command([name], one) for name, one in sorted(root.commands.items()))


def _command(path: list[str], command: Any) -> str:
    if getattr(command, "commands", None):
        return "\n".join(
            _command([*path, name], one) for name, one in sorted(command.commands.items())
        )
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    named = "".join(f" {_metavar(one)}" for one in arguments)
    parts = [
        f"## oneway {' '.join(path)}\n",
        f"```text\noneway {' '.join(path)}{named} [OPTIONS]\n```\n",
    ]
    parts.append(_help(command.help or ""))
    rows = [(f"`{_metavar(one)}`", _default(one), _cell(one.help)) for one in arguments]
    rows += [
        (f"`{' / '.join([*one.opts, *one.secondary_opts])}`", _default(one), _cell(one.help))
        for one in options
        if "--help" not in one.opts
    ]
    return "\n".join([*parts, table(("option", "default", "what it is"), rows)])


def _metavar(argument: Any) -> str:
    name = argument.name.upper()
    return name if argument.required else f"[{name}]"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or callable(value):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _help(text: str) -> str:
    """Return a command's help with its examples fenced."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    made = [
        f"```text\n{textwrap.dedent(part)}\n```" if part.startswith("    ") else part
        for part in paragraphs
    ]
    return "\n\n".join(made) + "\n"


BOARDS = {"digits": 4, "smoothed": 3, "faces": 3}
"""Data sets of the leaderboard, and decimals of L1 there."""

IN_SHORT = (
    *("none", "rounding, 2 decimals", "top 1, 1 decimal", "codebook, 20 members", "label only"),
    *("SSD, .5, label guarded", "PPF, label kept", "adversarial noise, .1"),
)
"""Releases that the README shows."""


def leaderboard(only: Sequence[str] = ()) -> str:
    """Return the leaderboard: one row per release, three columns per data set."""
    header, rows = ["release"], dict[str, list[str]]()
    for place, (preset, digits) in enumerate(BOARDS.items()):
        header += [f"L1, {preset}", f"G, {preset}", "tail"]
        for one in summaries()["leaderboard", preset]:
            if only and one.release not in only:
                continue
            row = rows.setdefault(one.release, ["-"] * (3 * place))
            for value, decimals in (
                ("l1_mean", digits),
                ("closed_gap", 2),
                ("closed_gap_least_confident", 2),
            ):
                told = spread(one.values[value], decimals)
                row.append(told if len(one.seeds) > 1 else f"{told} (one seed)")
    return table(header, [(release, *cells) for release, cells in rows.items()])


def parts() -> dict[Path, dict[str, str]]:
    """Return every generated part of every page."""
    made: dict[Path, dict[str, str]] = {}
    for name in DEFENSES:
        made[DOCS / "defenses" / f"{name}.md"] = {
            "facts": defense_facts(name),
            "parameters": parameters(name),
            "measured": defense_measured(name),
        }
    for name in ATTACKS:
        made[DOCS / "attacks" / f"{name}.md"] = {
            "facts": attack_facts(name),
            "measured": attack_measured(name),
        }
    made[DOCS / "defenses" / "index.md"] = {"table": defenses_table()}
    made[DOCS / "attacks" / "index.md"] = {"table": attacks_table()}
    made[DOCS / "reference" / "cli.md"] = {"commands": commands()}
    made[DOCS / "leaderboard.md"] = {"leaderboard": leaderboard()}
    made[ROOT / "README.md"] = {"leaderboard in short": leaderboard(IN_SHORT)}
    return made

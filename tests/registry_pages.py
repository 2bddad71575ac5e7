"""What pages of defenses, attackers and commands say that code decides.

Each part stands in its page between ``<!-- NAME -->`` and ``<!-- end of NAME -->``. With
ONEWAY_WRITE_DOCS=1 the tests write it there; else they compare. What records decide is written by
`oneway results`.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from invoking import all_commands
from oneway.attacks import ATTACKS
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
from oneway.options import Option

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

NEEDED = {"step_size": 0.1, "beta": 0.005}
"""Options without a default, to build a defense and ask what it promises."""

MEANINGS = {
    "images": "images of its own",
    "clean": "what the undefended service answered about them",
    "released": "what the defended service answers about them",
    "query": "the service itself, to ask",
    "simulated_defenses": "copies of the defense, with surrogates of its own",
    "differentiable_logits": "model and defense, with gradients",
    "candidates": "reconstructions of these images by all attackers before it",
    "train_prior": "a generative prior, trained on these images",
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
            )
        )
    header = ("defense", "keeps the label", "repeats", "needs the query", "needs beforehand")
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
    root: Any = all_commands()
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


def parts() -> dict[Path, dict[str, str]]:
    """Return every generated part of every page."""
    made: dict[Path, dict[str, str]] = {}
    for name in DEFENSES:
        made[DOCS / "defenses" / f"{name}.md"] = {
            "facts": defense_facts(name),
            "parameters": parameters(name),
        }
    for name in ATTACKS:
        made[DOCS / "attacks" / f"{name}.md"] = {"facts": attack_facts(name)}
    made[DOCS / "defenses" / "index.md"] = {"table": defenses_table()}
    made[DOCS / "attacks" / "index.md"] = {"table": attacks_table()}
    made[DOCS / "reference" / "cli.md"] = {"commands": commands()}
    return made

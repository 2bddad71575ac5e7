"""References lead to where an object is documented, by whatever name it can be imported.

`oneway.targets.TorchTarget` and `oneway.TorchTarget` are one class, documented once. Names of
other packages become text, since their documentation is on the network, and so do types in
signatures that are no part of the public surface.
"""

from functools import cache
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry
from sphinx.environment import BuildEnvironment


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Return a link or a text for a name that Sphinx did not find; None: that is an error."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if not target.startswith("oneway.") and _is_elsewhere(target):
        return content
    known = _documented(env)
    found = _import(target)
    names = [name for name in known if name.endswith(f".{target}")] or [
        name for name in known if found is not None and _import(name) is found
    ]
    if len(names) == 1:
        (name,) = names
        page, anchor = known[name].docname, known[name].node_id
        link = nodes.reference("", "", content, internal=True, reftitle=name)
        link["refuri"] = f"{app.builder.get_relative_uri(node['refdoc'], page)}#{anchor}"
        return link
    return content if found is not None and _is_in_signature(node) else None


@cache  # pages are written when all objects are known
def _documented(env: BuildEnvironment) -> dict[str, ObjectEntry]:
    objects = env.domains.python_domain.objects
    return {name: entry for name, entry in objects.items() if not entry.aliased}


def _is_in_signature(node: nodes.Node) -> bool:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, desc_signature):
            return True
    return False


def _is_elsewhere(target: str) -> bool:
    """Say whether a name is another package's, which can be imported here."""
    found = _import(target)
    return found is not None and "." in target


@cache  # each reference asks for all that is documented, and a failing import searches the disk
def _import(name: str) -> Any:
    """Return what a dotted name is, or None."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


def _keep_first_line(
    app: Sphinx,  # noqa: ARG001  part of the event
    what: str,
    name: str,  # noqa: ARG001
    obj: Any,  # noqa: ARG001
    options: Any,  # noqa: ARG001
    lines: list[str],
) -> None:
    """Napoleon takes what stands before a colon in an attribute's first line for its type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\ ")


def _parsable(
    app: Sphinx,  # noqa: ARG001  part of the event
    what: str,  # noqa: ARG001
    name: str,  # noqa: ARG001
    obj: Any,  # noqa: ARG001
    options: Any,  # noqa: ARG001
    signature: str | None,
    annotation: str | None,
) -> tuple[str | None, str | None]:
    """A dataclass says `<factory>` for a default, which is no Python: types would not be found."""
    return signature and signature.replace("<factory>", "..."), annotation


def setup(app: Sphinx) -> dict[str, bool]:
    """Ask here for names that Sphinx does not know."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-docstring", _keep_first_line, priority=400)
    app.connect("autodoc-process-signature", _parsable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

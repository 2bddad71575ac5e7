"""Build the site as `make docs` does, without what takes long and breaks no page.

    python tests/docs/quick_site.py DOCS OUT PAGE [PAGE ...]

Any warning is an error. The navigation, which is the same on all pages, is written on the named
pages alone; objects of a module are not repeated in the contents of its page; quotes stay straight;
a default is shown by its value, which needs no source; a word has its stem looked up once, and a
name its object; nobody looks for citations, C or C++, or for the lines where a function begins and
ends; nothing is said that nobody reads; and nodes are found in one pass, not by one generator for
each node above them.
"""

import functools
import gc
import logging
import sys
from pathlib import Path

from docutils.nodes import Node
from docutils.utils import Reporter
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.pycode.parser import Parser
from sphinx.search.en import SearchEnglish

find_one_by_one = Node.findall


def find_all(node, condition=None, include_self=True, descend=True, siblings=False, ascend=False):
    """Return a node and those below it that meet a condition, in the order of the document."""
    if not descend or siblings or ascend:
        return find_one_by_one(node, condition, include_self, descend, siblings, ascend)
    found, ahead = [], [node] if include_self else node.children[::-1]
    while ahead:
        one = ahead.pop()
        found.append(one)
        if one.children:
            ahead += one.children[::-1]
    if isinstance(condition, type):
        found = [one for one in found if isinstance(one, condition)]
    elif condition is not None:
        found = [one for one in found if condition(one)]
    return iter(found)


ELSEWHERE = ("sphinx.domains.c", "sphinx.domains.citation", "sphinx.domains.cpp")
"""Modules whose transforms walk through every page, and find nothing on ours."""


def main(docs: Path, out: Path, shown: set[str]) -> int:
    """Return the exit code of the build."""
    gc.disable()  # trees of nodes are full of cycles, and nearly all of them stay
    logging.disable(logging.INFO)
    Reporter.debug = lambda *_, **__: None  # twice for each node
    Node.findall = find_all
    Parser.parse_definition = lambda _: None  # lines of definitions, for links to sources
    SearchEnglish.stem = functools.cache(SearchEnglish.stem)
    # Pages are written when all objects are known.
    PythonDomain.find_obj = functools.cache(PythonDomain.find_obj)
    app = Sphinx(
        docs,
        docs,
        out,
        out.parent / "doctrees",
        "html",
        confoverrides={
            "autodoc_preserve_defaults": False,
            "smartquotes": False,
            "toc_object_entries": False,
        },
        status=None,
        warningiserror=True,
    )

    for kinds in (app.registry.transforms, app.registry.post_transforms):
        kinds[:] = [kind for kind in kinds if kind.__module__ not in ELSEWHERE]

    def leave_out(_app, page, _template, context, _doctree):
        if page not in shown:
            context.pop("toctree", None)

    app.connect("html-page-context", leave_out, priority=100)  # before the theme draws it
    app.build()
    return app.statuscode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), set(sys.argv[3:])))

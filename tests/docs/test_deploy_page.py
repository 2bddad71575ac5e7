"""docs/deploy.md: its attributes of traces are the code's; it names every file of deploy/."""

import os
import re
from pathlib import Path

from oneway.serving.tracing import ATTRIBUTES
from registry_pages import put, table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "deploy.md"
WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"
MEANINGS = {
    "method": "`GET`, `HEAD`, `POST` or `_OTHER`",
    "status": "status of the answer over HTTP",
    "system": "`grpc`, of requests over gRPC",
    "code": "status of the answer over gRPC",
    "route": "name of the route, not the path",
    "queries": "number of queries",
    "refused": "reason without scores, one word, as in `oneway_refused_total`",
    "error": "class of an exception",
}


def test_the_attributes_of_the_page_are_all_that_a_span_may_have():
    """With ONEWAY_WRITE_DOCS=1 they are written."""
    rows = [
        (f"`{name}`", "text" if kind is str else "whole number", MEANINGS[fact])
        for fact, (name, kind) in ATTRIBUTES.items()
    ]
    text = PAGE.read_text(encoding="utf-8")
    page = put(text, "trace attributes", table(("attribute", "type", "value"), rows))
    if WRITE:
        PAGE.write_text(page, encoding="utf-8")
    else:
        assert page == text, "run with ONEWAY_WRITE_DOCS=1"


def test_the_page_names_every_file():
    links = set(re.findall(r"\]\(\.\./deploy/([\w.]+)\)", PAGE.read_text(encoding="utf-8")))
    files = {path.name for path in (ROOT / "deploy").iterdir() if path.is_file()}
    assert files - links == {"Dockerfile.dockerignore"}
    assert links <= files

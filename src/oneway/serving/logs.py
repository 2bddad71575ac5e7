"""The log: one JSON object a line, of chosen facts: no query, no score, no text of an error."""

import json
import logging
import sys
import time
import warnings
from typing import Any, TextIO

QUIET = (
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "asyncio",
    "py.warnings",
)
"""Loggers of other packages. Their lines may quote addresses or exceptions."""


class JsonLines(logging.Formatter):
    """Formats a record as one line.

    Lines of oneway are an event and its facts. Of other packages' lines, only the logger, the
    level, the line number and the type of the exception are kept: the text may quote a query or a
    score.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        if record.name.startswith("oneway."):
            line |= {"event": str(record.msg), **getattr(record, "facts", {})}
        else:
            line |= {"event": "other", "logger": record.name, "line": record.lineno}
            if record.exc_info and record.exc_info[0] is not None:
                line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def start_logging(level: str, stream: TextIO | None = None) -> None:
    """Send the log of the whole process to standard error, or to ``stream``, as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("oneway").setLevel(level.upper())
    logging.captureWarnings(True)  # a warning's text may quote numbers
    warnings.simplefilter("default")
    warnings.simplefilter("ignore", ResourceWarning)  # as in Python; nobody can use it without text
    for name in QUIET:
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)

"""Errors of HTTP: a status and a text for a client that gets no scores, without any value."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response

from oneway.errors import where_raised
from oneway.openinference.tensors import MOST_ROWS_HEADER, REFUSED_HEADER, MessageError
from oneway.serving.responses import json_response


class RefusedError(Exception):
    """A request gets no scores.

    Attributes:
        status: The status of HTTP.
        text: What the client reads. It holds shapes, types and names, never a value.
        reason: One word for logs and metrics.
        retry_after: Seconds after which asking again makes sense, or None.
        closing: Whether the connection is closed, too.
        most_rows: The most queries that a request may have, if it has more; else None.
        allow: The method that the path takes, if the request has another; else None.
    """

    def __init__(
        self,
        status: int,
        text: str,
        reason: str,
        *,
        retry_after: int | None = None,
        closing: bool = False,
        most_rows: int | None = None,
        allow: str | None = None,
    ) -> None:
        """Compose a refusal."""
        super().__init__(text)
        self.status, self.text, self.reason = status, text, reason
        self.retry_after, self.closing, self.most_rows = retry_after, closing, most_rows
        self.allow = allow


def bad_request(text: str, most_rows: int | None = None) -> RefusedError:
    """Refuse a fault of the client."""
    return RefusedError(400, text, "bad_request", most_rows=most_rows)


def no_release(reason: str) -> RefusedError:
    """Refuse because model or guard failed, without saying how."""
    return RefusedError(503, "no scores can be released for this request", reason)


def traffic_changed() -> RefusedError:
    """Refuse because the traffic is not that of the guard's certificate."""
    return RefusedError(503, "the traffic is not as certified, and nothing is released", "drift")


def upstream_failed(reason: str) -> RefusedError:
    """Refuse because the guarded server did not answer as it must."""
    return RefusedError(502, "the guarded server did not answer as expected", reason)


@contextmanager
def upstream_errors() -> Iterator[None]:
    """Refuse a malformed answer of the guarded server, without a word of it.

    The refusal's cause says what is wrong, for the operator at the start.
    """
    try:
        yield
    except MessageError as error:
        raise upstream_failed(f"upstream_{error.reason}") from error


def error_response(error: RefusedError) -> Response:
    """Return the answer to a refused request, as the Open Inference Protocol says."""
    headers = {REFUSED_HEADER: "true"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.allow is not None:
        headers["Allow"] = error.allow
    if error.closing:
        headers["Connection"] = "close"
    if error.most_rows is not None:
        headers[MOST_ROWS_HEADER] = str(error.most_rows)
    return json_response({"error": error.text}, error.status, headers)


def refusal_of(error: Exception, facts: dict[str, Any]) -> RefusedError:
    """Return what a client is told of any exception, and note its reason.

    Args:
        error: The exception. Its text is kept only if it is oneway's own for clients.
        facts: Gets the reason, and of another exception its type and place.
    """
    if isinstance(error, MessageError):
        error = bad_request(str(error), error.most_rows)
    if not isinstance(error, RefusedError):
        facts |= {"error": type(error).__name__, "raised": where_raised(error)}
        error = RefusedError(500, "the server failed", "failure")
    facts["refused"] = error.reason
    return error

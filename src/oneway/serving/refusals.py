"""What a client is told when it gets no scores: a status and a text without any value."""


class RefusedError(Exception):
    """A request gets no scores.

    Attributes:
        status: Of HTTP.
        text: What the client reads. It holds shapes, types and names, never a value.
        reason: One word for logs and metrics.
        retry_after: Seconds after which asking again makes sense, or None.
        closing: Whether the connection is closed, too.
    """

    def __init__(
        self,
        status: int,
        text: str,
        reason: str,
        *,
        retry_after: int | None = None,
        closing: bool = False,
    ) -> None:
        """Compose a refusal."""
        super().__init__(text)
        self.status, self.text, self.reason = status, text, reason
        self.retry_after, self.closing = retry_after, closing


def bad_request(text: str) -> RefusedError:
    """Refuse what a client got wrong."""
    return RefusedError(400, text, "bad_request")


def no_release(reason: str) -> RefusedError:
    """Refuse because model or guard failed: nothing is released, and nothing is told of it."""
    return RefusedError(503, "no scores can be released for this request", reason)


def upstream_failed(reason: str) -> RefusedError:
    """Refuse because the guarded server did not answer as it must."""
    return RefusedError(502, "the guarded server did not answer as expected", reason)

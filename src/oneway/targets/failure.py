"""The error for a target that raised: it names the target and quotes no query."""

from oneway.errors import TargetFailedError, where_raised

REMEDY = "Check that the model takes the images' shape and type."


def failed(
    name: str, queries: int, error: Exception, *, caused: bool = True, remedy: str = REMEDY
) -> TargetFailedError:
    """Return the error for a target that raised while it answered.

    The exception's text is left out, since it may quote a query.

    Args:
        name: What the message calls the target.
        queries: Number of queries that the target was asked.
        error: The exception that the target raised.
        caused: Whether the exception becomes this error's cause. False for a server, which writes
            causes into its log.
        remedy: What the reader can do.
    """
    kind, place = type(error).__name__, where_raised(error)
    kept = "; in Python it is this error's `__cause__`" if caused else ""
    failure = TargetFailedError(
        f"{name} raised {kind} ({place}) when asked {queries} queries. Its own message is left "
        f"out here, since it may quote them{kept}. {remedy}"
    )
    failure.raised = kind, place
    return failure

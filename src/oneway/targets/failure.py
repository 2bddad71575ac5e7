"""What a target's own failure becomes: an error of oneway that names the target."""

from oneway.errors import TargetFailedError, where_raised


def failed(name: str, queries: int, error: Exception, *, caused: bool = True) -> TargetFailedError:
    """Compose the error of a target that raised while it answered.

    The exception's own text is left out, since it may quote a query.

    Args:
        name: What the message calls the target.
        queries: How many it was asked.
        error: What it raised.
        caused: The exception is about to become this error's cause. False for a server, which
            writes causes into its log.
    """
    kept = "; in Python it is this error's `__cause__`" if caused else ""
    return TargetFailedError(
        f"{name} raised {type(error).__name__} ({where_raised(error)}) when asked {queries} "
        f"queries. Its own message is left out here, since it may quote them{kept}. Check that "
        "the model takes the images' shape and type."
    )

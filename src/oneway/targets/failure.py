"""What a target's own failure becomes: an error of oneway that names the target."""

import traceback

from oneway.errors import TargetFailedError


def where_raised(error: BaseException, file: str | None = None) -> str:
    """Return ``"model.py, line 12"``, where an exception was raised.

    Args:
        error: The exception, caught.
        file: The innermost frame of this file is looked for; without it, or if there is none
            of it, the innermost of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "no traceback"
    frame = next((some for some in reversed(frames) if some.filename == file), frames[-1])
    return f"{frame.filename}, line {frame.lineno}"


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

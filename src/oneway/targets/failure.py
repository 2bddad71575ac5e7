"""Errors of models that raised: they name the model and quote no query."""

import copy
from collections.abc import Callable
from typing import TypeVar

from oneway.errors import OnewayError, TargetFailedError, where_raised

Answer = TypeVar("Answer")

REMEDY = "Check that the model takes queries of this shape and type."

_CAUSED = "; in Python it is this error's `__cause__`"


def failed(
    name: str, queries: int | None, error: Exception, *, caused: bool = True, remedy: str = REMEDY
) -> TargetFailedError:
    """Return the error for a target that raised while it answered.

    The exception's text is left out, since it may quote a query.

    Args:
        name: What the message calls the target.
        queries: Number of queries that the target was asked; None: unknown.
        error: The exception that the target raised.
        caused: Whether the exception becomes this error's cause. False for a server, which writes
            causes into its log.
        remedy: What to do, in sentences.
    """
    kind, place = type(error).__name__, where_raised(error)
    count = "" if queries is None else f" {queries} queries"
    failure = TargetFailedError(
        f"{name} raised {kind} ({place}) when asked{count}. Its own message is left out "
        f"here, since it may quote queries{_CAUSED if caused else ''}. {remedy}"
    )
    failure.raised = kind, place
    return failure


def redacted(name: str, queries: int | None, error: Exception, remedy: str = REMEDY) -> OnewayError:
    """Return the error that a server may show and log instead of an exception.

    Args:
        name: What the message calls the model.
        queries: Number of queries that the model was asked; None: unknown.
        error: The exception that the model raised.
        remedy: What to do, in sentences.

    Returns:
        An error of oneway as it is, but without cause and context, which may quote a query; of any
        other exception :func:`failed`.
    """
    if not isinstance(error, OnewayError):
        return failed(name, queries, error, caused=False, remedy=remedy)
    plain = copy.copy(error)
    plain.args = tuple(
        value.replace(_CAUSED, "") if isinstance(value, str) else value for value in error.args
    )
    plain.raised = error.raised
    return plain


def ask(
    name: str,
    queries: int | None,
    question: Callable[[], Answer],
    remedy: Callable[[], str] | None = None,
) -> Answer:
    """Ask a model, and raise no exception that quotes a query.

    Args:
        name: What messages call the model.
        queries: Number of queries that the model is asked; None: unknown.
        question: Asks the model.
        remedy: Says what to do if the model raises; called only then.

    Raises:
        TargetFailedError: The model raised. The exception's text is left out.
        OnewayError: The model raised an error of oneway, which is passed on without its cause.
    """
    try:
        return question()
    except Exception as error:  # noqa: BLE001  raised as ours, without its text
        refusal = redacted(name, queries, error, REMEDY if remedy is None else remedy())
    # Not within the handler: some logs also show the context, and its text may quote a query.
    raise refusal

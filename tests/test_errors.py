"""Errors travel: from a worker, or through a queue, with their type and their message."""

import pickle

from laws import looped
from oneway import errors
from oneway.errors import MissingExtraError, OnewayError, UnknownNameError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, OnewayError)
]
COMPOSED = [
    UnknownNameError("defense", "nose", ["noise"]),
    MissingExtraError("ray", extra="ray", purpose="running on a cluster"),
]


@looped("error", COMPOSED)
def test_a_composed_message_is_not_composed_again(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args


@looped("kind", [kind for kind in KINDS if kind not in map(type, COMPOSED)])
def test_any_other_error_is_restored_as_it_was(kind):
    again = pickle.loads(pickle.dumps(kind("expected this, but got that")))  # noqa: S301
    assert type(again) is kind
    assert str(again) == "expected this, but got that"

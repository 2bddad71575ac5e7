"""Addresses of models, and a user's options for the server at an address."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

from oneway.errors import InvalidOptionError
from oneway.openinference.key_paths import KeyPath

MODEL_PATH = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?$")


@dataclass(frozen=True)
class ModelAddress:
    """Where one model of the Open Inference Protocol answers.

    Attributes:
        base: The address up to the model, or up to its version.
        query: The query of the address, with its ``?``, which may hold a key; or empty.
        name: The model's name.
        version: The model's version, or None.
    """

    base: str
    query: str
    name: str
    version: str | None

    @classmethod
    def parse(cls, where: str) -> Self | None:
        """Return the address of a model, with or without ``/infer``; None if it is another."""
        base, mark, query = where.partition("?")
        base = base.removesuffix("/").removesuffix("/infer")
        path = MODEL_PATH.search(base)
        if path is None:
            return None
        return cls(base, mark + query, unquote(path["name"]), path["version"])

    def url(self, part: str = "") -> str:
        """Return the address of the metadata, or of a part: ``"/ready"`` or ``"/infer"``."""
        return f"{self.base}{part}{self.query}"

    @property
    def paths(self) -> tuple[str, ...]:
        """The model's path without host and prefix; then that of its version, if it has one."""
        path = self.base[self.base.index("/v2/models/") :]
        return (path,) if self.version is None else (path.rpartition("/versions/")[0], path)


@dataclass(frozen=True)
class EndpointOptions:
    """A user's options for the server at an address.

    Attributes:
        input_name: Open Inference Protocol: the input that takes the queries. None: the only
            input.
        output_name: Open Inference Protocol: the output that holds the scores. None: the only
            output of floats of shape (N, K).
        request_key: Plain JSON: the place of the queries, such as ``"instances"``.
        response_key: Plain JSON: the place of the scores, such as ``"predictions.*.scores"``.
    """

    input_name: str | None = None
    output_name: str | None = None
    request_key: str | None = None
    response_key: str | None = None

    @property
    def keys(self) -> tuple[KeyPath, KeyPath] | None:
        """The places of queries and scores in plain JSON; None without both keys.

        Raises:
            InvalidOptionError: A key is not names separated by dots.
        """
        if self.request_key is None or self.response_key is None:
            return None
        return KeyPath.parse(self.request_key), KeyPath.parse(self.response_key)

    def model_address(self, where: str, server: str) -> ModelAddress | None:
        """Return the address of the model, or None if the server takes plain JSON.

        Args:
            where: The server's address.
            server: The server, as messages name it.

        Raises:
            InvalidOptionError: Address and options do not fit together.
        """
        if self.keys is not None:
            if self.input_name is not None or self.output_name is not None:
                raise InvalidOptionError(
                    "input_name and output_name are for the Open Inference Protocol, request_key "
                    "and response_key for plain JSON. Give those of one."
                )
            return None
        address = ModelAddress.parse(where)
        if address is None or (self.request_key, self.response_key) != (None, None):
            raise InvalidOptionError(
                f"{server} is asked for plain JSON, unless its address ends in /v2/models/NAME or "
                "/v2/models/NAME/versions/V and no key is given. Say where queries and scores "
                "are, by both of request_key and response_key, such as 'instances' and "
                "'predictions'."
            )
        return address


def shown_address(where: str) -> str:
    """Return an address as messages may show it: without its query, which may hold a key.

    Raises:
        InvalidOptionError: ``where`` is no address, or holds a user name or password.
    """
    try:
        parts = urlsplit(where)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    # Python drops line breaks and tabs of an address, which httpx refuses much later.
    if not parts.hostname or any(unicodedata.category(character) == "Cc" for character in where):
        raise InvalidOptionError(
            "an address must be like https://host/v2/models/NAME or http://host:8080/path, but "
            "this one has no host, no valid port, or a line break or tab in it."
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidOptionError(
            "an address must hold no user name or password, since it is shown and recorded. Put "
            "a bearer token into the environment variable ONEWAY_TOKEN."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"

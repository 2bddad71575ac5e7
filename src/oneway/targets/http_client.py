"""A patient HTTP client for JSON: retries, limits, and no value in any message."""

import json
import os
import re
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from oneway.checks import check_above, check_count
from oneway.errors import InvalidOptionError, TargetFailedError
from oneway.extras import load_extra
from oneway.openinference.tensors import MOST_ROWS_HEADER, REFUSED_HEADER

TOKEN_VARIABLE = "ONEWAY_TOKEN"  # noqa: S105  its name, not its value

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Environment variables that name a proxy, in capital or small letters."""

SETTINGS = (*PROXIES, "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Environment variables that httpx reads."""

Client = TypeVar("Client")

RETRIED = (429, 502, 503, 504)
"""Statuses that say "later": too many requests, and gateways without a server behind them."""

LONGEST_WAIT_SECONDS = 60.0

UNSUITABLE = "Check the names, the shape and the type that the model takes, or lower batch_size"

REMEDIES = {
    400: UNSUITABLE,
    401: f"Put a token into the environment variable {TOKEN_VARIABLE}",
    403: f"Put a token with the right to ask into the environment variable {TOKEN_VARIABLE}",
    404: "Check the address, and that the model is loaded",
    405: "Check the address: it takes no POST",
    413: "Lower batch_size",
    422: UNSUITABLE,
    429: "Ask more slowly: lower batch_size, or raise attempts or backoff_seconds",
    500: "Look into the server's log, or lower batch_size",
}


MOST_ERROR_BYTES = 2**16
"""Most bytes that are read of an error, and only of oneway's own server."""


class RequestTooLargeError(TargetFailedError):
    """A server refused a request because it is too large.

    Attributes:
        most_rows: The most queries of a request, if the server says so.
    """

    most_rows: int | None = None


class HttpClient:
    """Asks one server for JSON. Connections are kept, and closed with the object.

    A request is asked again when the server says "later" or the connection fails, so that a
    server may see the same query more than once.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout_seconds: float = 60.0,
        attempts: int = 5,
        backoff_seconds: float = 0.5,
        most_bytes: int = 64 * 2**20,
    ) -> None:
        """Prepare a client, without asking anything.

        Args:
            name: The server, as messages name it.
            timeout_seconds: Longest wait for a connection, and for a whole answer.
            attempts: How often a request is tried, at least 1.
            backoff_seconds: The wait before the second attempt; it doubles with each further
                attempt. A longer ``Retry-After`` of the server is honoured, up to a minute.
            most_bytes: Largest answer that is read, in bytes, unpacked.

        Raises:
            MissingExtraError: httpx is not installed.
            InvalidOptionError: An option is outside its range, or the environment holds a token in
                ONEWAY_TOKEN that cannot be sent, or proxies or certificates that cannot be used.
        """
        check_above("timeout_seconds", timeout_seconds, 0)
        check_count("attempts", attempts)
        check_above("backoff_seconds", backoff_seconds, 0)
        check_count("most_bytes", most_bytes)
        self.name = name
        self.timeout_seconds, self.attempts = timeout_seconds, attempts
        self.backoff_seconds, self.most_bytes = backoff_seconds, most_bytes
        self._httpx = load_extra("httpx", extra="http", purpose="asking a target over HTTP")
        # Redirects are not followed: they could carry token and queries to another server.
        headers, make = json_headers(), self._httpx.Client
        self._client = made_client(
            lambda: make(timeout=timeout_seconds, headers=headers, follow_redirects=False)
        )
        weakref.finalize(self, self._client.close)

    def get(self, url: str) -> bytes:
        """Return the body of a successful answer.

        Raises:
            TargetFailedError: There was no successful answer.
        """
        return self._request("GET", url, None)

    def get_json(self, url: str) -> Any:
        """Return the JSON value of a successful answer.

        Raises:
            TargetFailedError: There was no successful answer.
        """
        return self._parse(self.get(url))

    def post_json(self, url: str, value: Any) -> Any:
        """Send a JSON value, and return that of a successful answer.

        Raises:
            TargetFailedError: There was no successful answer.
        """
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        return self._parse(self._request("POST", url, body))

    def _request(self, method: str, url: str, body: bytes | None) -> bytes:
        for attempt in range(1, self.attempts + 1):
            wait = min(self.backoff_seconds * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS)
            cause = None
            try:
                status, headers, answer = self._once(method, url, body)
            except (
                self._httpx.NetworkError,
                self._httpx.TimeoutException,
                self._httpx.RemoteProtocolError,
            ) as error:
                failure, cause = _described(error, self.timeout_seconds), error
            except self._httpx.DecodingError as error:
                raise TargetFailedError(
                    f"{self.name} answers with a body that its Content-Encoding does not unpack. "
                    "Let the server send it as it is, or packed by gzip."
                ) from error
            except self._httpx.RequestError as error:
                raise TargetFailedError(
                    f"{self.name} could not be asked ({type(error).__name__}). Check the address "
                    "and the proxy settings."
                ) from error
            else:
                if 200 <= status < 300:
                    return answer
                failure = f"it answered with status {status}"
                if status not in RETRIED:
                    raise self._refused(status, headers, answer)
                wait = max(wait, _retry_after(headers))
                if wait > LONGEST_WAIT_SECONDS:
                    raise TargetFailedError(
                        f"{self.name} failed: {failure} and asks to wait {wait:.0f} s, longer "
                        f"than {LONGEST_WAIT_SECONDS:.0f} s. Try again later."
                    )
            if attempt < self.attempts:
                time.sleep(wait)
        raise TargetFailedError(
            f"{self.name} failed {self.attempts} times, at last because {failure}. "
            f"{_reach_remedy() if cause else _remedy(status)}."
        ) from cause

    def _once(
        self, method: str, url: str, body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Ask once; read the body if the answer is successful, or an error of oneway's server."""
        until = time.monotonic() + self.timeout_seconds
        with self._client.stream(method, url, content=body) as answer:
            read = bytearray()
            if not answer.is_success:
                if REFUSED_HEADER in answer.headers:
                    for piece in answer.iter_bytes():
                        read += piece
                        if len(read) > MOST_ERROR_BYTES or time.monotonic() > until:
                            break
                return answer.status_code, answer.headers, bytes(read)
            for piece in answer.iter_bytes():
                read += piece
                if len(read) > self.most_bytes:
                    raise TargetFailedError(
                        f"{self.name} answers with more than {self.most_bytes} bytes. Lower "
                        "batch_size, or raise most_bytes."
                    )
                # httpx limits the wait for each piece; a server may drip for ever.
                if time.monotonic() > until:
                    raise self._httpx.ReadTimeout("the answer took too long")
            return answer.status_code, answer.headers, bytes(read)

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> TargetFailedError:
        """Return the error for a refusal, with the words of its body, which may be empty."""
        words = ""
        with suppress(ValueError, RecursionError):
            message = json.loads(body)
            if isinstance(message, dict) and isinstance(message.get("error"), str):
                words = f": {message['error']}"
        text = f"{self.name} failed: it answered with status {status}{words}. {_remedy(status)}."
        limit = headers.get(MOST_ROWS_HEADER, "")
        has_limit = re.fullmatch("[1-9][0-9]{0,8}", limit) is not None
        if status != 413 and not has_limit:
            return TargetFailedError(text)
        too_large = RequestTooLargeError(text)
        too_large.most_rows = int(limit) if has_limit else None
        return too_large

    def _parse(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            # The error of json carries the whole text: it is no cause to pass on.
            raise TargetFailedError(
                f"{self.name} must answer with JSON, but its {len(body)} bytes are none, or are "
                "cut off. Check the address and the server's log."
            ) from None


def json_headers() -> dict[str, str]:
    """Return the headers of a request for JSON, with the bearer token of the environment.

    Raises:
        InvalidOptionError: The token cannot be sent.
    """
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    token = os.environ.get(TOKEN_VARIABLE, "")
    if token:
        # httpx would quote a token that cannot be sent.
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise InvalidOptionError(
                f"the environment variable {TOKEN_VARIABLE} must hold a bearer token of printable "
                "ASCII without blanks, but holds other characters. Look for a line break at its "
                "end."
            )
        headers["Authorization"] = f"Bearer {token}"
    return headers


def made_client(make: Callable[[], Client]) -> Client:
    """Return a client of httpx, which reads proxies and certificates from the environment.

    Raises:
        InvalidOptionError: The environment's proxies or certificates cannot be used.
    """
    invalid = load_extra("httpx", extra="http", purpose="asking a target over HTTP").InvalidURL
    try:
        return make()
    except (ImportError, OSError, ValueError, invalid) as error:
        kind = type(error).__name__
    # Not within the handler, and without its text: an address of a proxy may hold a password.
    raise InvalidOptionError(
        "the environment names proxies or certificates that the HTTP client cannot use "
        f"({kind}). Check {' and '.join(_in_environment(SETTINGS)) or 'its settings'}: NO_PROXY "
        "takes an IPv6 address without brackets and without a prefix length, and a SOCKS proxy "
        "needs `pip install 'httpx[socks]'`."
    )


def _in_environment(names: Sequence[str]) -> list[str]:
    """Return those environment variables that are set, as they are spelled."""
    spelled = [spelling for name in names for spelling in (name, name.lower())]
    return [name for name in spelled if os.environ.get(name)]


def _reach_remedy() -> str:
    proxies = " and ".join(_in_environment(PROXIES))
    by = f", with the proxy of {proxies}, or past it by NO_PROXY" if proxies else ""
    return f"Check that the server runs and can be reached{by}"


def _described(error: Exception, timeout_seconds: float) -> str:
    kind = type(error).__name__
    if kind.endswith("Timeout"):
        return f"there was no whole answer within {timeout_seconds:g} s ({kind})"
    # The texts of the other errors may quote the answer.
    text = f": {error}" if kind == "ConnectError" else ""
    return f"the connection failed ({kind}{text})"


def _remedy(status: int) -> str:
    if 300 <= status < 400:
        return "It points elsewhere, and redirects are not followed: give the final address"
    return REMEDIES.get(status, "Look into the server's log")


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to wait; 0 if the header cannot be read."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())

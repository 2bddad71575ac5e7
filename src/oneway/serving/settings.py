"""How a server behaves: from a file, the environment and the command line, checked once."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, StringConstraints, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, UnknownNameError
from oneway.releases import MOST_DECIMALS

PREFIX = "ONEWAY_SERVE_"
"""What the names of settings begin with in the environment."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine reaches, and the pages in its browsers."""

LEAST_TOKEN = 16
"""Characters of the shortest bearer token."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]

File = Path | None
Secret = SecretStr | None
Port = Annotated[int, Field(ge=0, le=65535)]
Decimals = Annotated[int, Field(ge=0, le=MOST_DECIMALS)] | None
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Multiple = Annotated[int, Field(ge=1, le=64)] | None
Wait = Annotated[float, Field(ge=0, le=1000)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1024)]
Hosts = str | None
Seconds = Annotated[float, Field(gt=0, le=3600)]
WaitSeconds = Annotated[float, Field(ge=0, le=3600)]
WholeSeconds = Annotated[int, Field(ge=1, le=3600)]
Risk = Annotated[float, Field(gt=0, lt=1)]
Level = Literal["debug", "info", "warning", "error"]


def _setting(default: Any, description: str) -> Any:
    return Field(default=default, description=description)


class ServingSettings(BaseSettings):
    """Settings of `oneway serve`, before a model and before an address.

    The command line goes before the environment, the environment before the file, and the file
    before the defaults. Secrets are never shown.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    host: str = _setting("127.0.0.1", "Address to listen on.")
    port: Port = _setting(8000, "Port to listen on; 0 takes a free port.")
    admin_port: Port | None = _setting(
        None,
        "Port for health and metrics alone, which no load delays; metrics are then served there "
        "only. 0 takes a free port. [no such port]",
    )
    grpc_port: Port | None = _setting(
        None, "Port for gRPC; 0 takes a free port. [gRPC is not spoken]"
    )
    allowed_hosts: Hosts = _setting(
        None,
        "Names that clients may call this server by, with commas between them, such as "
        "*.example.org. [on a loopback address, the names of this machine; else any]",
    )
    tls_certificate: File = _setting(None, "PEM file of the certificate chain; with tls_key.")
    tls_key: File = _setting(None, "PEM file of the certificate's private key.")
    token: Secret = _setting(None, "Bearer token that clients must send; or use token_file.")
    token_file: File = _setting(None, "File with the bearer token.")
    key: Secret = _setting(None, "Secret that fixes a random defense's draws; or use key_file.")
    key_file: File = _setting(None, "File with that secret.")
    model_name: Name | None = _setting(
        None, "Name of a served model, for clients. [its file's stem, or model]"
    )
    model_version: Name = _setting("1", "Version of a served model.")
    input_name: Name | None = _setting(
        None, "Name of a served model's input. [as its ONNX file says, or input]"
    )
    output_name: Name | None = _setting(
        None, "Name of a served model's output. [as its ONNX file says, or probabilities]"
    )
    decimals: Decimals = _setting(None, "Decimals of what is released. [no rounding]")
    max_batch_size: BatchSize = _setting(64, "Most queries that the model is asked at once.")
    batch_multiple: Multiple = _setting(
        None,
        "Batches of a served model are filled up to a multiple of this, so that a query's scores "
        "have the same bits in any batch. [as the self test finds the guard to need]",
    )
    batch_wait_milliseconds: Wait = _setting(0.0, "Wait of a batch for more queries.")
    max_request_rows: Count = _setting(64, "Most queries in one request.")
    max_request_bytes: Bytes = _setting(16 * 2**20, "Bytes of the largest request.")
    max_waiting_rows: Count = _setting(512, "Most waiting queries; beyond, 429 and Retry-After.")
    max_waiting_bytes: Bytes = _setting(
        256 * 2**20, "Most bytes of all requests under way; beyond, 429 and Retry-After."
    )
    max_connections: Count = _setting(
        512,
        "Most requests under way; beyond, 503. Of more connections than that, those that are idle "
        "or unread for longest are closed.",
    )
    timeout_seconds: Seconds = _setting(30.0, "Time to read a request, and to answer it.")
    keep_alive_seconds: WholeSeconds = _setting(
        75,
        "Time that an idle connection stays open; longer than a load balancer keeps its own idle "
        "connections, or it sends requests to closed ones.",
    )
    shutdown_seconds: WholeSeconds = _setting(10, "Time for requests to end after SIGTERM.")
    upstream_timeout_seconds: Seconds = _setting(20.0, "Address: time for the server's answer.")
    upstream_wait_seconds: WaitSeconds = _setting(0.0, "Address: wait until the server is ready.")
    max_upstream_bytes: Bytes = _setting(64 * 2**20, "Address: bytes of its largest answer.")
    max_upstream_requests: Count = _setting(64, "Address: most requests at once; beyond, 429.")
    watch_drift: bool = _setting(
        True,
        "Codebook: count cells of answers, and test whether their shares are still those of the "
        "certified queries.",
    )
    drift_risk: Risk = _setting(
        0.01, "Probability of an alarm, ever, while the traffic is as certified."
    )
    drift_folder: File = _setting(
        None,
        "Folder for the state of that test, a file per certificate and port. [lost at the end]",
    )
    stop_on_drift: bool = _setting(
        False,
        "Release nothing after an alarm, until the guard has a new certificate. Clients can then "
        "stop the service: unusual queries are enough.",
    )
    metrics: bool = _setting(True, "Serve Prometheus metrics at /metrics.")
    log_level: Level = _setting("info", "Least severe line of the log.")

    @model_validator(mode="after")
    def _check_pairs(self) -> "ServingSettings":
        if (self.tls_certificate is None) is not (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both")
        for name in ("token", "key"):
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                raise ValueError(f"give one of {name} and {name}_file")
        for kind in ("rows", "bytes"):
            waiting, request = f"max_waiting_{kind}", f"max_request_{kind}"
            if getattr(self, waiting) < getattr(self, request):
                raise ValueError(f"{waiting} must be at least {request}")
        return self

    @property
    def served_hosts(self) -> list[str] | None:
        """Names that a request's header Host may have, in lower case; None for any."""
        if self.allowed_hosts is not None:
            return [host.strip() for host in self.allowed_hosts.lower().split(",")]
        if self.host in LOOPBACK:
            return ["localhost", "127.0.0.1", "[::1]"]
        return None

    @property
    def most_batch_rows(self) -> int:
        """Most queries that a served model sees at once, with those that fill a batch up."""
        multiple = self.batch_multiple or 1
        return -(-self.max_batch_size // multiple) * multiple

    def bearer_token(self) -> bytes | None:
        """Return the token that clients must send, or None if they need none.

        Raises:
            MissingDataError: The file of the token is not there.
            InvalidOptionError: The token is too short, or cannot be sent.
        """
        token = _secret("token", self.token, self.token_file)
        if token is not None and not re.fullmatch(rb"[\x21-\x7e]{%d,}" % LEAST_TOKEN, token):
            raise InvalidOptionError(
                f"the token must be at least {LEAST_TOKEN} characters of printable ASCII without "
                "blanks, but is not. Make one with `openssl rand -hex 32`."
            )
        return token

    def guard_key(self) -> bytes | None:
        """Return the secret of random defenses, or None if none is given.

        Raises:
            MissingDataError: The file of the secret is not there.
        """
        return _secret("key", self.key, self.key_file)


def load_settings(file: Path | None, given: Mapping[str, Any]) -> ServingSettings:
    """Read settings, and check them once.

    Args:
        file: TOML whose keys are names of settings, or None.
        given: Settings of the command line, by name.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: The file is no TOML.
        UnknownNameError: There is no setting of a name.
        InvalidOptionError: A setting is outside its range.
    """
    values = {} if file is None else _read(file)
    known = ServingSettings.model_fields
    named = (name.removeprefix(PREFIX).lower() for name in os.environ if name.startswith(PREFIX))
    for name in (*values, *given, *named):
        if name not in known:
            raise UnknownNameError("setting", name, known)

    class Layered(ServingSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  no .env file is read
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  nor a folder
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            lowest = InitSettingsSource(settings_cls, init_kwargs=values)
            return init_settings, env_settings, lowest

    try:
        return Layered(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise InvalidOptionError(
            f"the setting {name} is refused: {text}." if name else f"settings are refused: {text}."
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no settings file {file}. Check the path.") from error
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        # The rest of the parser's text may quote a secret.
        places = re.findall(r"at line \d+, column \d+", str(error))
        what = " ".join([type(error).__name__, *places[-1:]])
        raise CorruptDataError(
            f"the settings file {file} cannot be read as TOML ({what})."
        ) from None


def _secret(name: str, secret: SecretStr | None, file: Path | None) -> bytes | None:
    if secret is not None:
        return secret.get_secret_value().encode()
    if file is None:
        return None
    try:
        return file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise MissingDataError(
            f"the file {file} of the setting {name}_file cannot be read ({type(error).__name__})."
        ) from error

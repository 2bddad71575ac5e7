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

from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
    UnknownNameError,
)
from oneway.releases import MOST_DECIMALS

PREFIX = "ONEWAY_SERVE_"
"""What the names of settings begin with in the environment."""

LEAST_TOKEN = 16
"""Characters of the shortest bearer token."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class ServingSettings(BaseSettings):
    """Settings of `oneway serve` and `oneway proxy`.

    What is given on the command line goes before the environment, that before the file, and that
    before the defaults. Secrets are never shown.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate chain; together with tls_key."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of its private key.")
    token: SecretStr | None = Field(
        default=None, description="Bearer token that clients must send; or use token_file."
    )
    token_file: Path | None = Field(default=None, description="File with that token.")
    key: SecretStr | None = Field(
        default=None, description="Secret that fixes the draws of a random defense; or key_file."
    )
    key_file: Path | None = Field(default=None, description="File with that secret.")
    model_name: Name = Field(default="model", description="What clients call the model.")
    model_version: Name = Field(default="1", description="Its version.")
    input_name: Name = Field(default="input", description="What clients call its input.")
    output_name: Name = Field(default="probabilities", description="And its output.")
    decimals: int | None = Field(
        default=None, ge=0, le=MOST_DECIMALS, description="Round what is released. [no rounding]"
    )
    max_batch_size: int = Field(
        default=64, ge=1, le=4096, description="Most queries that the model is asked at once."
    )
    batch_multiple: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Batches are filled up to a multiple of this, so that a query's scores have "
        "the same bits in any batch.",
    )
    batch_wait_milliseconds: float = Field(
        default=0.0, ge=0, le=1000, description="How long a batch waits for more queries."
    )
    max_request_rows: int = Field(default=64, ge=1, description="Most queries in one request.")
    max_request_bytes: int = Field(default=16 * 2**20, ge=1024, description="Largest request.")
    max_waiting_rows: int = Field(
        default=512, ge=1, description="Queries that may wait; beyond, 429 and Retry-After."
    )
    max_waiting_bytes: int = Field(
        default=256 * 2**20,
        ge=1024,
        description="What all requests under way may hold; beyond, 429 and Retry-After.",
    )
    max_connections: int = Field(
        default=512,
        ge=1,
        description="Requests under way at once; beyond, 503. Of more connections than that, those "
        "that are idle longest are closed.",
    )
    timeout_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="For reading a request, and for its answer."
    )
    shutdown_seconds: int = Field(
        default=10, ge=1, le=3600, description="How long requests may end after SIGTERM."
    )
    upstream_timeout_seconds: float = Field(
        default=20.0, gt=0, le=3600, description="`oneway proxy`: for the upstream's answer."
    )
    upstream_wait_seconds: float = Field(
        default=0.0, ge=0, le=3600, description="`oneway proxy`: how long to wait until it is up."
    )
    max_upstream_bytes: int = Field(
        default=64 * 2**20, ge=1024, description="`oneway proxy`: its largest answer."
    )
    max_upstream_requests: int = Field(
        default=64, ge=1, description="`oneway proxy`: requests to it at once; beyond, 429."
    )
    metrics: bool = Field(default=True, description="Serve Prometheus metrics at /metrics.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line of the log."
    )

    @model_validator(mode="after")
    def _check_pairs(self) -> "ServingSettings":
        if (self.tls_certificate is None) is not (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: give both")
        for name in ("token", "key"):
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                raise ValueError(f"give one of {name} and {name}_file")
        if self.max_waiting_rows < self.max_request_rows:
            raise ValueError("max_waiting_rows must be at least max_request_rows")
        if self.max_waiting_bytes < self.max_request_bytes:
            raise ValueError("max_waiting_bytes must be at least max_request_bytes")
        return self

    @property
    def most_batch_rows(self) -> int:
        """Most queries that the model sees at once, with what batches are filled up by."""
        return -(-self.max_batch_size // self.batch_multiple) * self.batch_multiple

    def bearer_token(self) -> bytes | None:
        """Return the token that clients must send, or None if they need none.

        Raises:
            MissingDataError: Its file is not there.
            InvalidOptionError: It is too short, or cannot be sent.
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
            MissingDataError: Its file is not there.
        """
        return _secret("key", self.key, self.key_file)


def load_settings(file: Path | None, given: Mapping[str, Any]) -> ServingSettings:
    """Read settings, and check them once.

    Args:
        file: TOML whose keys are names of settings, or None.
        given: What the command line says.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is no TOML.
        UnknownNameError: There is no such setting.
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
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidOptionError(
            f"the setting {name} is refused: {said}." if name else f"settings are refused: {said}."
        ) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingDataError(f"there is no settings file {file}. Check the path.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # What the parser says may quote a secret.
        raise CorruptDataError(
            f"the settings file {file} cannot be read as TOML ({type(error).__name__})."
        ) from None


def _secret(name: str, given: SecretStr | None, file: Path | None) -> bytes | None:
    if given is not None:
        return given.get_secret_value().encode()
    if file is None:
        return None
    try:
        return file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise MissingDataError(
            f"the file {file} of the setting {name}_file cannot be read ({type(error).__name__})."
        ) from error

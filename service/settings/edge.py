"""Settings of the HTTP edge: keys, rates, origins, TLS and the limits of connections.

They are a base class of `service.settings.settings.Settings`.
"""

import re
from pathlib import Path
from typing import Final, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings

from service.regular_files import read_bytes, read_text

DEFAULT_KEY: Final = "default"
ADMIN_KEY: Final = "admin"
MAX_KEYS_FILE_BYTES: Final = 1 << 20
"""A choice: room for ten thousand keys, and a bound against a wrong path."""

MAX_PEM_BYTES: Final = 1 << 20
"""A choice: room for a chain of hundreds of certificates, and a bound against a wrong path."""

_NAMED_KEY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=([\x21-\x7e]+)")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class EdgeSettings(BaseSettings):
    """Which callers the service answers, at which rate, from which origins and how slow."""

    api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="If set, every route except probes, metrics and documentation requires "
        "`Authorization: Bearer KEY`. Prefer the variable: flags show in process lists. Logs and "
        "metrics call this key `default`.",
    )
    api_keys: SecretStr | None = Field(
        None,
        min_length=1,
        description="Further keys, as `name=key,name=key`. Logs and metrics show the names.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with further keys, one `name=key` a line. The service reads it once, at "
        "start.",
    )
    admin_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="Key for the admin routes: everything under `/admin/`, and changes to labels. "
        "Without it they answer 403. It also opens all other routes.",
    )
    admin_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Second port on the same address, for the admin routes. `port` then refuses "
        "them, and this port answers only them, probes and metrics.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Another port on the same address, for `/metrics`, which no other port then "
        "answers. Every port answers probes. Not set: `port` answers `/metrics`.",
    )
    rate_limit_per_s: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Most requests a second of one key, or of one client address if there are no "
        "keys; the service answers further ones 429. Each process counts by itself. Not set: no "
        "limit.",
    )
    rate_burst: int = Field(
        20, ge=1, le=1_000_000, description="Most requests at once under `rate_limit_per_s`."
    )
    cors_origins: str | None = Field(
        None,
        min_length=1,
        description="Origins whose pages may call this service from a browser, separated by "
        "commas, such as `https://app.example.org`; `*` allows every origin. Not set: none.",
    )
    tls_certfile: Path | None = Field(
        None, description="Certificate chain (PEM). With it the service speaks HTTPS only."
    )
    tls_keyfile: Path | None = Field(
        None, description="Private key of the certificate (PEM), if it is in a separate file."
    )
    tls_keyfile_password: SecretStr | None = Field(
        None, min_length=1, description="Password of the private key."
    )
    max_header_bytes: int = Field(
        32768,
        ge=1024,
        le=1 << 24,
        description="Most bytes of a request's line and headers together; more gets 431.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Longest time for a client to send a request's headers, or its first byte on a "
        "new connection. The service then closes the connection.",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Most open connections of one process. Further ones get 503 and are closed. "
        "Not set: as many as the system allows.",
    )

    @model_validator(mode="after")
    def _check_edge(self) -> Self:
        self.named_keys()
        self.allowed_origins()
        if self.tls_certfile is None and (self.tls_keyfile or self.tls_keyfile_password):
            raise ValueError("tls_keyfile is set without tls_certfile: set both, or neither")
        for name in ("tls_certfile", "tls_keyfile"):
            if (path := getattr(self, name)) is not None:
                _check_pem(name, path)
        if self.admin_port is not None and self.admin_key is None:
            raise ValueError("admin_port is set without admin_key: set one, or nothing may use it")
        return self

    def named_keys(self) -> dict[str, str]:
        """Every key by its name, except the admin key.

        Raises ValueError for a bad entry, a repeated name or key, and a file that cannot be read.
        """
        keys = {} if self.api_key is None else {DEFAULT_KEY: self.api_key.get_secret_value()}
        entries = [] if self.api_keys is None else self.api_keys.get_secret_value().split(",")
        for place, entry in enumerate(entries, 1):
            _add_key(keys, entry, f"api_keys, entry {place}")
        for place, entry in enumerate(self._lines_of_keys_file(), 1):
            if entry.strip() and not entry.startswith("#"):
                _add_key(keys, entry, f"{self.api_keys_file}, line {place}")
        secrets = [*keys.values(), *([self.admin_key.get_secret_value()] if self.admin_key else [])]
        if len(set(secrets)) != len(secrets):
            raise ValueError("two names have the same key: give each caller, and admin, its own")
        return keys

    def allowed_origins(self) -> list[str]:
        """The origins in `cors_origins`; raises ValueError for an entry that is not an origin."""
        origins = [o.strip() for o in (self.cors_origins or "").split(",") if o.strip()]
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"cors_origins: {origin[:80]!r} is no origin: write scheme and host, such as "
                    "https://app.example.org, without a path"
                )
        return origins

    def _lines_of_keys_file(self) -> list[str]:
        path = self.api_keys_file
        if path is None:
            return []
        try:
            return read_text(path, MAX_KEYS_FILE_BYTES).splitlines()
        except OSError as exc:
            raise ValueError(f"api_keys_file: {path} cannot be read: {exc.strerror}") from exc
        except ValueError as exc:
            raise ValueError(f"api_keys_file: {exc}") from exc


def _check_pem(name: str, path: Path) -> None:
    # The TLS library opens it by its name later, and would wait for a pipe and read a device on.
    try:
        read_bytes(path, MAX_PEM_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no file {path}: name one in PEM") from None
    except OSError as exc:
        raise ValueError(f"{name}: {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ValueError(f"{name}: {exc}") from exc


def _add_key(keys: dict[str, str], entry: str, where: str) -> None:
    # No message shows the entry, because it holds a key.
    match = _NAMED_KEY.fullmatch(entry.strip())
    if match is None:
        raise ValueError(f"{where}: expected name=key, of printable characters")
    name, key = match.groups()
    if name in keys or name == ADMIN_KEY:
        raise ValueError(f"{where}: the name {name} is taken: choose another")
    keys[name] = key

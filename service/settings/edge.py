"""Settings of the HTTP edge: keys, rates, origins, TLS, and what a connection may take.

A base of `service.settings.Settings`, which is the class that everything else reads.
"""

import re
from pathlib import Path
from typing import Final, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings

DEFAULT_KEY: Final = "default"
ADMIN_KEY: Final = "admin"
MAX_KEYS_FILE_BYTES: Final = 1 << 20

_NAMED_KEY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=([\x21-\x7e]+)")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class EdgeSettings(BaseSettings):
    """Who may ask, how often, from where, and how slowly."""

    api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="When set, every route but probes, metrics and documentation asks for "
        "`Authorization: Bearer KEY`. Prefer the variable: flags show in process lists. It is "
        "the key named `default` in logs and metrics.",
    )
    api_keys: SecretStr | None = Field(
        None,
        min_length=1,
        description="Further keys, as `name=key,name=key`. The name goes to logs and metrics.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with further keys, one `name=key` a line; read once at start.",
    )
    admin_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="Key of everything under `/admin/` and of changes to labels. Not set, these "
        "are answered 403. It opens all other routes as well.",
    )
    admin_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Second port on the same address that alone answers what needs the admin key; "
        "there it answers nothing else but probes and metrics.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Another port on the same address that alone answers `/metrics`; the probes "
        "are on every port. Not set, metrics are on `port`.",
    )
    rate_limit_per_s: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Requests a second that one key may make, or one client address where there "
        "are no keys; more is answered 429. Each process counts for itself. Not set, no limit.",
    )
    rate_burst: int = Field(
        20, ge=1, le=1_000_000, description="Requests that may come at once under that limit."
    )
    cors_origins: str | None = Field(
        None,
        min_length=1,
        description="Origins whose pages may call this service from a browser, separated by "
        "commas, such as `https://app.example.org`; `*` is every one. Not set, none.",
    )
    tls_certfile: Path | None = Field(
        None, description="Certificate chain (PEM). With it the service speaks HTTPS only."
    )
    tls_keyfile: Path | None = Field(
        None, description="Private key of the certificate (PEM), where it is a file of its own."
    )
    tls_keyfile_password: SecretStr | None = Field(
        None, min_length=1, description="Password of the private key."
    )
    max_header_bytes: int = Field(
        32768,
        ge=1024,
        le=1 << 24,
        description="Most bytes of a request's line and headers together; more is answered 431.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        description="How long a client may take to send a request's headers, or to send its first "
        "byte on a new connection; then the connection is closed.",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Most open connections of one process; further ones are answered 503 and "
        "closed. Not set, as many as the system allows.",
    )

    @model_validator(mode="after")
    def _check_edge(self) -> Self:
        self.named_keys()
        self.allowed_origins()
        if self.tls_certfile is None and (self.tls_keyfile or self.tls_keyfile_password):
            raise ValueError("tls_keyfile is set without tls_certfile: set both, or neither")
        for path in (self.tls_certfile, self.tls_keyfile):
            if path is not None and not path.is_file():
                raise ValueError(f"there is no file {path}: name the certificate and key as PEM")
        if self.admin_port is not None and self.admin_key is None:
            raise ValueError("admin_port is set without admin_key: set one, or nothing may use it")
        return self

    def named_keys(self) -> dict[str, str]:
        """Every key by its name, the admin's not counted; raises ValueError on a fault."""
        found = {} if self.api_key is None else {DEFAULT_KEY: self.api_key.get_secret_value()}
        entries = [] if self.api_keys is None else self.api_keys.get_secret_value().split(",")
        for place, entry in enumerate(entries, 1):
            _add_key(found, entry, f"api_keys, entry {place}")
        for place, entry in enumerate(self._lines_of_keys_file(), 1):
            if entry.strip() and not entry.startswith("#"):
                _add_key(found, entry, f"{self.api_keys_file}, line {place}")
        used = [*found.values(), *([self.admin_key.get_secret_value()] if self.admin_key else [])]
        if len(set(used)) != len(used):
            raise ValueError("two names have the same key: give each caller, and admin, its own")
        return found

    def allowed_origins(self) -> list[str]:
        """Origins of `cors_origins`; raises ValueError where one is none."""
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
            if path.stat().st_size > MAX_KEYS_FILE_BYTES:
                raise ValueError(f"api_keys_file: {path} has over {MAX_KEYS_FILE_BYTES} bytes")
            return path.read_text(encoding="utf-8").splitlines()
        except OSError as exc:
            raise ValueError(f"api_keys_file: {path} cannot be read: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise ValueError(f"api_keys_file: {path} is not UTF-8") from exc


def _add_key(found: dict[str, str], entry: str, where: str) -> None:
    # The entry itself is never shown: it holds a key.
    match = _NAMED_KEY.fullmatch(entry.strip())
    if match is None:
        raise ValueError(f"{where}: expected name=key, of printable characters")
    name, key = match.groups()
    if name in found or name == ADMIN_KEY:
        raise ValueError(f"{where}: the name {name} is taken: choose another")
    found[name] = key

"""Object stores: reads and writes the objects under one URL.

obstore speaks S3, Google Cloud Storage, Azure Blob Storage, HTTP and files alike. It is young, so
this module alone touches it. Credentials come from the variables of each cloud's own tools.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.errors import BundleNotFound, BundleUnavailable, SettingsInvalid

if TYPE_CHECKING:
    from obstore import PutMode

CHUNK_BYTES: Final = 1 << 20
"""A choice: large enough that Python's share of a stream is small, small enough for memory."""

RETRY_S: Final = 60.0
"""How long failing requests are tried again. A choice: a throttled store recovers in less, and
whoever waits for a bundle should hear of a lasting fault."""

SILENCE_S: Final = 30.0
"""The longest wait for the next bytes, as the client's own default for a whole request: here it
must not bound a large object."""

HUB: Final = "https://huggingface.co"
"""Of `hf://` URLs, unless HF_ENDPOINT names another one, as for Hugging Face's own client."""


_TIMES = re.compile(r" in [0-9.]+(ns|µs|ms|s)\b(, after .*?timeout: \w+)? *")
"""How long a request took and how often it was tried, in the words of obstore."""


@dataclass(frozen=True, slots=True)
class Content:
    """A whole small object and the version of it that the store states, None without one."""

    data: bytes
    version: str | None


class ObjectStore:
    """The objects under one URL, by names without slashes or below folders of such names."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Opens nothing yet; with `create` it makes the folder of a `file://` URL.

        Raises SettingsInvalid where the URL or a variable is wrong, and BundleNotFound where a
        `file://` URL names no folder.
        """
        self.url = url
        store = _import_store()
        headers: dict[str, str] = {}
        if url.startswith("hf://"):
            url, headers = _hub(url)
        options: dict[str, Any] = {
            "client_options": {
                "allow_http": url.startswith("http://") or _is_plain(os.environ),
                "timeout": timedelta(days=1),
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": timedelta(seconds=SILENCE_S),
                "default_headers": headers,
            },
            "retry_config": {"max_retries": 6, "retry_timeout": timedelta(seconds=RETRY_S)},
        }
        if url.startswith("file://"):
            options = {"mkdir": create}
            if not create and not Path(url.removeprefix("file://")).is_dir():
                raise BundleNotFound(f"{url} names no folder of this machine")
        try:
            self._store = store.from_url(url, **options)
        except Exception as exc:  # obstore raises its own, ValueError and others
            raise SettingsInvalid(f"{self.url} cannot be used: {_first_line(exc)}") from exc

    def read(self, name: str, max_bytes: int) -> Content | None:
        """A whole object of at most `max_bytes`; None where there is none.

        Raises BundleUnavailable.
        """
        import obstore

        with self._explained(name):
            try:
                result = obstore.get(self._store, name)
            except (obstore.exceptions.NotFoundError, FileNotFoundError, NotADirectoryError):
                return None
            parts, size = [], 0
            for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                parts.append(bytes(chunk))
                size += len(chunk)
                if size > max_bytes:
                    raise BundleUnavailable(f"{self.url}/{name} has over {max_bytes} bytes")
            return Content(b"".join(parts), result.meta["e_tag"])

    def stream(self, name: str, start: int) -> Iterator[bytes]:
        """The bytes of an object from `start` on, in chunks; raises BundleUnavailable."""
        import obstore

        with self._explained(name):
            options: Any = {"range": {"offset": start}} if start else None
            result = obstore.get(self._store, name, options=options)
            for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    def write(self, name: str, content: Path | bytes) -> None:
        """Write an object whole, over an older one; raises BundleUnavailable."""
        import obstore

        with self._explained(name):
            obstore.put(self._store, name, content)

    def swap(self, name: str, content: bytes, before: Content | None) -> bool:
        """Write an object if it is still what was read `before`; returns whether it was.

        A store of files knows no versions, and writes in any case. Raises BundleUnavailable.
        """
        import obstore
        from obstore import exceptions

        mode: PutMode = "create" if before is None else {"e_tag": before.version}
        if self.url.startswith("file://"):
            mode = "overwrite"
        with self._explained(name):
            try:
                obstore.put(self._store, name, content, mode=mode)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return False
        return True

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except BundleUnavailable:
            raise
        except Exception as exc:  # obstore raises its own, OSError, ValueError and others
            raise BundleUnavailable(f"{self.url}/{name}: {_first_line(exc)}") from exc


def _import_store() -> Any:
    try:
        from obstore import store
    except ImportError as exc:
        raise SettingsInvalid(
            "bundles by URL need the package obstore: pip install 'astrolabe[remote]'"
        ) from exc
    return store


def _is_plain(environment: Any) -> bool:
    """Whether an endpoint without TLS is named for S3, as for a store beside the service."""
    return str(environment.get("AWS_ALLOW_HTTP", "")).lower() in ("1", "true")


def _hub(url: str) -> tuple[str, dict[str, str]]:
    """The HTTP URL and headers of `hf://OWNER/NAME[@REVISION][/FOLDER]`."""
    owner, _, rest = url.removeprefix("hf://").partition("/")
    repository, _, folder = rest.partition("/")
    name, _, revision = repository.partition("@")
    if not owner or not name:
        raise SettingsInvalid(f"{url} names no repository: write hf://OWNER/NAME")
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    path = f"{endpoint}/{owner}/{name}/resolve/{revision or 'main'}"
    token = os.environ.get("HF_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return (f"{path}/{folder}" if folder else path), headers


def _first_line(error: Exception) -> str:
    """The first line of an error, without the pages of nested causes and the times in it.

    A sentence that changes with each try would be logged at each.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _TIMES.sub("", lines[0])[:300] if lines else type(error).__name__

"""Fetching: brings bundles that lie under a URL to this machine, in a process of its own.

The client of the store has threads, and no worker could be forked beside them. A process of its own
also takes its memory along when it ends, and nothing that a store sends can crash the service. It
is `python -m service.fetch`. The rest of the service sees the mirror, a folder of bundles like any
other (`service.bundle.cache`).
"""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

from service.bundle.cache import BundleCache
from service.bundle.verify import resolve
from service.errors import BundleError, BundleNotFound, BundleUnavailable
from service.serving.pointer import Pointer, Target
from service.settings.places import BundleUrl
from service.settings.settings import Settings

log = logging.getLogger(__name__)


def bundle_cache(settings: Settings) -> BundleCache:
    """The cache of the bundles that come from URLs."""
    return BundleCache(settings.bundle_cache, settings.bundle_cache_bytes)


def local_folder(place: Path | BundleUrl, settings: Settings) -> Path:
    """The path itself, or the mirror of the URL, which may be empty yet."""
    return bundle_cache(settings).mirror(place) if isinstance(place, BundleUrl) else place


def fetched_folder(place: Path | BundleUrl, settings: Settings) -> Path:
    """The same at the start of the service, after a fetch. Blocking.

    Where the store does not answer, the bundle that it named last serves on, with a warning. Raises
    BundleError.
    """
    folder = local_folder(place, settings)
    if isinstance(place, BundleUrl):
        try:
            Fetching(place, settings).fetch()
        except BundleUnavailable as exc:
            try:
                kept = resolve(folder).resolve()
            except BundleNotFound:
                raise exc from None
            fields = {"url": place, "why": exc.detail, "bundle": kept.name}
            log.warning("serving the bundle that the URL named last", extra={"fields": fields})
    return folder


def pointer_of(settings: Settings, followed: Target) -> Pointer:
    """The pointer of the first bundle, whose looks fetch where it lies under a URL."""
    place = settings.bundle
    folder = local_folder(place, settings)
    if isinstance(place, BundleUrl):
        return Pointer(folder, followed, Fetching(place, settings).look)
    return Pointer(folder, followed)


class Fetching:
    """The fetches of one URL. For one thread at a time."""

    def __init__(self, url: BundleUrl, settings: Settings) -> None:
        self.url = url
        self._command = [sys.executable, "-m", "service.fetch", url]
        self._command += [f"--bundle-cache={settings.bundle_cache.absolute()}"]
        self._command += [f"--bundle-cache-bytes={settings.bundle_cache_bytes}"]
        self._command += [f"--bundle-keys={key.absolute()}" for key in settings.bundle_keys]
        self._child: subprocess.Popen[bytes] | None = None

    def fetch(self) -> Path:
        """Fetch what the URL names now, unless it is there; returns its folder. Blocking.

        Raises BundleError.
        """
        begin = time.monotonic()
        log.info("fetching a bundle", extra={"fields": {"url": self.url}})
        folder = _outcome(self._start(), self.url)
        fields = {"url": self.url, "folder": str(folder), "s": round(time.monotonic() - begin, 3)}
        log.info("fetched a bundle", extra={"fields": fields})
        return folder

    def look(self) -> None:
        """Start a fetch unless one runs; it moves the mirror's pointer when it is done.

        Raises BundleError where the last one has failed; the next call starts another one.
        """
        child, self._child = self._child, None
        if child is not None:
            if child.poll() is None:
                self._child = child
                return
            _outcome(child, self.url)
        self._child = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        try:
            return subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=_HERE
            )
        except OSError as exc:
            raise BundleUnavailable(f"{self.url}: no process can be started: {exc}") from exc


_HERE = Path(__file__).parents[2]
"""The folder with the package, which an interpreter finds there from any working folder."""


def _outcome(child: "subprocess.Popen[bytes]", url: str) -> Path:
    """What an ended fetch has answered; waits for its end. Raises BundleError."""
    output, _ = child.communicate()
    # Its exit code says nothing: a master reaps all its children, this one too.
    try:
        answer = json.loads(output)
    except ValueError:
        raise BundleUnavailable(f"{url}: the fetch was killed or crashed: see its lines") from None
    if "folder" in answer:
        return Path(answer["folder"])
    kinds = {kind.code: kind for kind in BundleError.__subclasses__()}
    raise kinds.get(answer["code"], BundleUnavailable)(answer["detail"])

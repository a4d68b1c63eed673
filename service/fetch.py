"""python -m service.fetch: brings the bundle that a URL names into the cache of bundles.

    python -m service.fetch URL [--bundle-cache FOLDER] [--bundle-cache-bytes N]

URL is s3://, gs://, az://, https://, http://, file:// or hf://, and names a sealed bundle or a
folder of bundles with a pointer CURRENT. It takes the service's environment variables and flags for
the cache and the keys. It prints one JSON object: the folder of the bundle; or the code and the
sentence of an error, with exit code 1. The service runs it at its start and every `watch_s`; run it
before, in an init container say, and the service starts without a wait.
"""

from service.interrupt import end_on_signal

if __name__ == "__main__":
    end_on_signal("Stopped: the next fetch goes on from here.")

import argparse
import json
import sys
from collections.abc import Sequence

OPTIONS = ("bundle-cache", "bundle-cache-bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch, and print what became of it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.fetch", description=__doc__)
    parser.add_argument("url")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as for python -m service")
    parser.add_argument("--bundle-keys", action="append", default=[], metavar="FILE")
    options = parser.parse_args(arguments)
    flags = [f"--bundle={options.url}", *(f"--bundle-keys={key}" for key in options.bundle_keys)]
    for name in OPTIONS:
        if (value := getattr(options, name.replace("-", "_"))) is not None:
            flags.append(f"--{name}={value}")

    # Import late: --help must not wait.
    from service.bundle.cache import BundleCache
    from service.bundle.signatures import read_bundle_keys
    from service.bundle.source import fetch
    from service.errors import AstrolabeError, SettingsInvalid
    from service.settings.places import BundleUrl
    from service.settings.settings import load_settings

    try:
        settings = load_settings(flags)
        if not isinstance(settings.bundle, BundleUrl):
            raise SettingsInvalid(
                f"{options.url} is no URL: what is on this machine needs no fetch"
            )
        cache = BundleCache(settings.bundle_cache, settings.bundle_cache_bytes)
        folder = fetch(settings.bundle, cache, read_bundle_keys(settings.bundle_keys))
    except AstrolabeError as exc:
        print(json.dumps({"code": exc.code, "detail": exc.detail}))
        return 1
    print(json.dumps({"folder": str(folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

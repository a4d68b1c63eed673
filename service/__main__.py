"""python -m service: settings, logs, ports, then serving until a signal.

The port is bound first and listened on last: a taken port is known at once, and a client that
comes while the bundle is still being verified and warmed is refused by the kernel instead of
waiting for a 503. Kubernetes' startup probe covers that time; nothing here answers half-open.
"""

import os
import signal

if __name__ == "__main__":
    # Until serving begins, a signal ends the process. An exception would be lost where Python
    # drops it, such as in a finaliser; a thread that waits, as other commands have, would be one
    # too many for a fork. Process 1 of a container ignores SIGTERM unless it asks for it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))

import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings.settings import Settings

log = logging.getLogger("service")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code is 0 then, and 1 where starting failed."""
    # Nothing heavy above: --help must not wait for ONNX Runtime and FAISS.
    from service.errors import AstrolabeError
    from service.settings.settings import load_settings

    try:
        settings = load_settings(sys.argv[1:] if arguments is None else arguments)
        return _serve(settings)
    except AstrolabeError as exc:
        print(f"python -m service: {exc.detail}", file=sys.stderr)
    except OSError as exc:
        print(f"python -m service: {exc}", file=sys.stderr)
    return 1


def _serve(settings: "Settings") -> int:
    if settings.workers > 1:
        # NumPy's own threads, started at its import, would not survive the fork.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from service.edge.ports import bind
    from service.observe.logs import configure_logging
    from service.process.serve import serve_alone, serve_with_workers

    configure_logging(settings.log_level, settings.log_format)
    log.info("starting", extra={"fields": {"pid": os.getpid(), "settings": settings.public()}})
    ports = [settings.port, *filter(None, (settings.admin_port, settings.metrics_port))]
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(bind(settings.host, port)) for port in ports]
        serve = serve_with_workers if settings.workers > 1 else serve_alone
        serve(settings, listeners)
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python -m service: reads the settings, sets up logs and ports, and serves until a signal.

It binds the ports first and listens on them last. So a port that is in use is an error at once.
While the bundle is still being verified and warmed, the kernel refuses clients, and they do not
wait for a 503. Kubernetes' startup probe covers that time.
"""

import os
import signal

from service.signals import ending_signals

if __name__ == "__main__":
    # Until serving begins, a signal ends the process. We raise no exception, because Python drops
    # it in some places, such as a finaliser. We start no waiting thread (`service.interrupt`),
    # because threads do not survive a fork. We set a handler at all, because process 1 of a
    # container ignores SIGTERM without one.
    for number in ending_signals():
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
    """Serve until a signal; returns the exit code, 0 then and 1 for a failed start."""
    # Import late: --help must not wait for ONNX Runtime and FAISS.
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
        # NumPy's own threads, which start at its import, do not survive a fork.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from service.edge.ports import bind
    from service.observe.logs import configure_logging
    from service.process.serve import serve_alone, serve_with_workers
    from service.settings.settings import ignored_variables

    configure_logging(settings.log_level, settings.log_format)
    if ignored := ignored_variables():
        fields = {"variables": ignored, "mend": "set enableServiceLinks: false in the pod"}
        log.info("ignoring variables of Kubernetes' Services", extra={"fields": fields})
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

import signal

import pytest

from service.signals import ending_signals


@pytest.mark.parametrize(("handler", "heeded"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_hang_up_ends_a_process_unless_it_was_started_to_ignore_it(
    handler: signal.Handlers, heeded: bool
) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert (signal.SIGHUP in ending_signals()) == heeded
        assert {signal.SIGTERM, signal.SIGINT} < set(ending_signals())
    finally:
        signal.signal(signal.SIGHUP, before)

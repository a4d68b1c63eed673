"""The HTTP client on its own thread: LoadGen's thread hands queries in, the event loop sends them.

The hand-over is a deque and at most one pending wake-up, so a burst costs one wake-up. What the
client itself can sustain is measured by `python -m loadtest ceiling`.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import uvloop

from loadtest.client.connection import Ticket
from loadtest.client.pool import Pool
from loadtest.client.recorder import Recorder
from loadtest.plan import StepPlan
from loadtest.target import Target, recommend_request

# Room for the server's own 504 to arrive before the client gives up at the same deadline.
GRACE_S = 0.25


class Client:
    """Sends queries as soon as they are issued; `complete` is told when LoadGen may know."""

    def __init__(
        self, plan: StepPlan, texts: Sequence[str], complete: Callable[[int], None]
    ) -> None:
        target = Target.parse(plan.url)
        self.recorder = Recorder()
        self._requests = [
            recommend_request(target, text, plan.k, plan.effort, plan.timeout_ms) for text in texts
        ]
        self._pool = Pool(
            target,
            self.recorder,
            complete,
            max_connections=plan.connections,
            give_up_s=plan.timeout_ms / 1000 + GRACE_S,
            hold_failure_s=plan.p99_ms / 1000,
        )
        # As many as are in use at once when every answer takes exactly the limit (Little's law).
        self._n_ahead = max(1, min(plan.connections, round(plan.rate * plan.p99_ms / 1000)))
        self._inbox: deque[Ticket] = deque()
        self._wake_pending = False
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-client")

    @property
    def n_opened(self) -> int:
        """How many connections were opened so far."""
        return self._pool.n_opened

    def start(self) -> None:
        """Start the thread and open connections ahead of the first query."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._pool.open(self._n_ahead), self._loop).result()

    def issue(self, sample_ids: Sequence[tuple[int, int]]) -> None:
        """Take (LoadGen handle, query row) pairs; called on LoadGen's thread, returns at once."""
        now_s = time.perf_counter()
        for sample_id, query_row in sample_ids:
            row = self.recorder.add(query_row)
            self._inbox.append(Ticket(sample_id, row, self._requests[query_row], now_s))
        if not self._wake_pending:
            self._wake_pending = True
            self._loop.call_soon_threadsafe(self._drain)

    def stop(self) -> None:
        """Close the connections and end the thread."""
        asyncio.run_coroutine_threadsafe(self._pool.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _drain(self) -> None:
        # Cleared first: a query handed in while this loop runs is either seen by it or wakes it.
        self._wake_pending = False
        while self._inbox:
            self._pool.submit(self._inbox.popleft())

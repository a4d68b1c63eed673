"""The HTTP client: LoadGen's thread puts queries into a queue, an event loop's thread sends them.

LoadGen's thread wakes the event loop only where no wake-up is pending, so a burst of queries costs
one wake-up. `python -m loadtest ceiling` measures how many queries a second the client can send.
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
from loadtest.headers import Headers
from loadtest.plan import StepPlan
from loadtest.target import Target, recommend_request

# The client waits this much longer than the deadline that it sends, so that the service's own 504
# arrives before the client counts a timeout. A choice: a longer grace keeps connections busy.
GRACE_S = 0.25


class Client:
    """Sends every query as soon as LoadGen issues it.

    The client calls `complete` with LoadGen's handle when a query has ended. It delays that call
    for a failed query (see Pool). `texts` are the query texts; LoadGen names them by position.
    `headers` go with every request.
    """

    def __init__(
        self,
        plan: StepPlan,
        texts: Sequence[str],
        complete: Callable[[int], None],
        headers: Headers | None = None,
    ) -> None:
        target = Target.parse(plan.url, headers)
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
        # Little's law: so many connections are busy where every answer takes exactly the limit.
        self._n_to_open = max(1, min(plan.connections, round(plan.rate * plan.p99_ms / 1000)))
        self._inbox: deque[Ticket] = deque()
        self._wake_pending = False
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-client")

    @property
    def n_opened(self) -> int:
        """Number of connections opened so far."""
        return self._pool.n_opened

    def start(self) -> None:
        """Start the thread and open connections before the first query."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._pool.open(self._n_to_open), self._loop).result()

    def issue(self, samples: Sequence[tuple[int, int]]) -> None:
        """Queue queries for sending and return at once; LoadGen's thread calls it.

        Each sample is LoadGen's handle and the position of its query among the texts.
        """
        now_s = time.perf_counter()
        for sample_id, query_row in samples:
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
        # Cleared before the loop: it either takes a query that arrives meanwhile, or is woken anew.
        self._wake_pending = False
        while self._inbox:
            self._pool.submit(self._inbox.popleft())

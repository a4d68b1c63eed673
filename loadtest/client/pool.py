"""The connections of the client, and the queries that wait for one or for an answer.

Open loop means a slow server must not slow the sending: a query that finds no idle connection
opens one, up to a limit, and only then waits (its latency counts from its scheduled time all the
same). Everything here runs on the client's event loop. Each ticket ends exactly once.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable

from loadtest.client.connection import Connection, Ticket
from loadtest.client.outcomes import OK, Failure
from loadtest.client.recorder import Recorder
from loadtest.target import Target

# Below the keep-alive of common servers (uvicorn closes at 5 s), so that a query is not written
# into a connection the server is just closing.
IDLE_LIMIT_S = 2.0
SWEEP_S = 0.005
# A stall must not be answered with hundreds of handshakes at once: they cost the client more than
# the queries that wait for them, most of which get a freed connection sooner.
MAX_OPENING = 32


class Pool:
    """Takes tickets, sends them, times them out and reports each end to `complete`."""

    def __init__(
        self,
        target: Target,
        recorder: Recorder,
        complete: Callable[[int], None],
        max_connections: int,
        give_up_s: float,
        hold_failure_s: float,
    ) -> None:
        self._target = target
        self._tls = ssl.create_default_context() if target.tls else None
        self._recorder = recorder
        self._complete = complete
        self._max_connections = max_connections
        self._give_up_s = give_up_s
        self._hold_failure_s = hold_failure_s
        self._idle: list[Connection] = []
        self._waiting: deque[Ticket] = deque()
        self._by_age: deque[Ticket] = deque()
        self._held: deque[tuple[float, int]] = deque()
        self._opening: set[asyncio.Task[bool]] = set()
        self._live: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self.n_opened = 0

    def submit(self, ticket: Ticket) -> None:
        """Send the ticket on an idle connection, or queue it and open one."""
        self._by_age.append(ticket)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        while self._idle:
            connection = self._idle.pop()  # the most recently used is the least likely to be stale
            if ticket.issued_s - connection.idle_since_s < IDLE_LIMIT_S:
                connection.send(ticket)
                return
            connection.abort()
        self._waiting.append(ticket)
        self._open_enough()

    async def open(self, count: int) -> None:
        """Open connections ahead of need; a failure is left for a query to find out."""
        for _ in range(count):
            if not await self._open_one():
                return

    async def close(self) -> None:
        """Drop every connection and stop the clockwork."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._live):
            connection.abort()

    def answered(self, connection: Connection, ticket: Ticket, code: int, timing: bytes) -> None:
        """Record the answer and put the connection to its next use."""
        self._end(ticket, code, timing)
        if not connection.reusable:
            connection.abort()
        else:
            self._use(connection)

    def closed(self, connection: Connection, ticket: Ticket | None) -> None:
        """Forget a connection; a query that was in flight on it is lost."""
        self._live.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if ticket is not None:
            self._end(ticket, Failure.LOST, b"")
        self._open_enough()

    def _use(self, connection: Connection) -> None:
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.ended:
                connection.send(ticket)
                return
        connection.idle_since_s = time.perf_counter()
        self._idle.append(connection)

    def _open_enough(self) -> None:
        room = self._max_connections - len(self._live)
        wanted = min(len(self._waiting), room, MAX_OPENING)
        for _ in range(wanted - len(self._opening)):
            self._start_opening()

    def _start_opening(self) -> None:
        task = asyncio.get_running_loop().create_task(self._open_one())
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[bool]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            self._open_enough()

    async def _open_one(self) -> bool:
        host, port = self._target.host, self._target.port
        try:
            async with asyncio.timeout(self._give_up_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self), host, port, ssl=self._tls
                )
        except OSError:
            self._refuse_one()
            return False
        self.n_opened += 1
        if connection.reusable:  # it may have been closed again while the loop was busy
            self._live.add(connection)
            self._use(connection)
        return True

    def _refuse_one(self) -> None:
        """End one waiting query: one attempt was made for one query, so one pays for it."""
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.ended:
                self._end(ticket, Failure.REFUSED, b"")
                return

    def _end(self, ticket: Ticket, code: int, timing: bytes) -> None:
        now_s = time.perf_counter()
        ticket.ended = True
        ticket.connection = None
        self._recorder.end(ticket.row, code, ticket.sent_s, now_s, timing)
        if code == OK:
            self._complete(ticket.sample_id)
        else:
            # LoadGen knows only latencies. Held back past the limit, a quick refusal counts in
            # its verdict as a query that missed the limit, never as a fast one.
            self._held.append((now_s + self._hold_failure_s, ticket.sample_id))

    def _sweep(self) -> None:
        now_s = time.perf_counter()
        while self._by_age and (
            self._by_age[0].ended or now_s - self._by_age[0].issued_s > self._give_up_s
        ):
            ticket = self._by_age.popleft()
            if not ticket.ended:
                connection = ticket.connection
                self._end(ticket, Failure.TIMEOUT, b"")
                if connection is not None:
                    connection.abort()
        while self._held and self._held[0][0] <= now_s:
            self._complete(self._held.popleft()[1])
        self._sweeper = None
        if self._by_age or self._held:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

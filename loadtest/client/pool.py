"""The connections of the client, and the queries that wait for a connection or for an answer.

The load is open loop: a slow server must not slow the sending. A query that finds no idle
connection opens a new one. It waits only where `max_connections` are open, and its latency counts
from its scheduled time all the same. All of this runs on the client's event loop. Each ticket ends
exactly once.
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

# Shorter than the keep-alive of common servers (uvicorn closes after 5 s), so that the client
# writes no query into a connection that the server is about to close.
IDLE_LIMIT_S = 2.0
# Time between two looks for overdue queries. A choice: timeouts are late by at most 5 ms, and 200
# looks a second cost next to nothing.
SWEEP_S = 0.005
# Most handshakes at once. A server's stall would otherwise start hundreds, and those cost the
# client more CPU than the queries do. Most queries get a free connection sooner. 32 is a choice.
MAX_HANDSHAKES = 32


class Pool:
    """Sends tickets, ends those that are overdue, and reports each end to `complete`.

    A query is overdue `give_up_s` seconds after its issue. A failure is reported `hold_failure_s`
    seconds late: see `_end`.
    """

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
        self._idle_connections: list[Connection] = []
        self._queue: deque[Ticket] = deque()
        self._by_age: deque[Ticket] = deque()
        self._late_reports: deque[tuple[float, int]] = deque()  # (time to report, sample id)
        self._handshakes: set[asyncio.Task[bool]] = set()
        self._connections: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self.n_opened = 0

    def submit(self, ticket: Ticket) -> None:
        """Send the ticket on an idle connection, or queue it and open a connection."""
        self._by_age.append(ticket)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        while self._idle_connections:
            # The server closes the most recently used connection last.
            connection = self._idle_connections.pop()
            if ticket.issued_s - connection.idle_since_s < IDLE_LIMIT_S:
                connection.send(ticket)
                return
            connection.abort()
        self._queue.append(ticket)
        self._open_enough()

    async def open(self, count: int) -> None:
        """Open `count` connections ahead of need. It ends at the first that cannot be opened."""
        for _ in range(count):
            if not await self._open_one():
                return

    async def close(self) -> None:
        """Abort every connection and stop the timer."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()

    def on_answer(self, connection: Connection, ticket: Ticket, code: int, timing: bytes) -> None:
        """Record the answer, then send the next query on the connection or keep it idle."""
        self._end(ticket, code, timing)
        if not connection.reusable:
            connection.abort()
        else:
            self._use(connection)

    def on_close(self, connection: Connection, ticket: Ticket | None) -> None:
        """Forget the connection; the query in flight on it, if any, is lost."""
        self._connections.discard(connection)
        if connection in self._idle_connections:
            self._idle_connections.remove(connection)
        if ticket is not None:
            self._end(ticket, Failure.LOST, b"")
        self._open_enough()

    def _use(self, connection: Connection) -> None:
        while self._queue:
            ticket = self._queue.popleft()
            if not ticket.ended:
                connection.send(ticket)
                return
        connection.idle_since_s = time.perf_counter()
        self._idle_connections.append(connection)

    def _open_enough(self) -> None:
        room = self._max_connections - len(self._connections)
        n_handshakes = min(len(self._queue), room, MAX_HANDSHAKES)
        for _ in range(n_handshakes - len(self._handshakes)):
            self._start_handshake()

    def _start_handshake(self) -> None:
        task = asyncio.get_running_loop().create_task(self._open_one())
        self._handshakes.add(task)
        task.add_done_callback(self._on_handshake_end)

    def _on_handshake_end(self, task: asyncio.Task[bool]) -> None:
        self._handshakes.discard(task)
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
        if connection.reusable:  # the server may have closed it while the loop was busy
            self._connections.add(connection)
            self._use(connection)
        return True

    def _refuse_one(self) -> None:
        """End one query of the queue, because the handshake that failed was for one query."""
        while self._queue:
            ticket = self._queue.popleft()
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
            # LoadGen knows only latencies. It hears of a quick refusal after the limit has passed,
            # so its verdict counts the refusal as a query that missed the limit.
            self._late_reports.append((now_s + self._hold_failure_s, ticket.sample_id))

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
        while self._late_reports and self._late_reports[0][0] <= now_s:
            self._complete(self._late_reports.popleft()[1])
        self._sweeper = None
        if self._by_age or self._late_reports:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

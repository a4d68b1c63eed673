"""Watch: ends a request that takes too long, or whose client has gone.

The connection tells of a hang-up where it can. Where something stands between the two, which only
ASGI's messages pass, a request still open after `GRACE_S` gets a task that listens for it.
"""

import asyncio
from types import TracebackType
from typing import Final

from starlette.types import Receive

from service.core.batching.job import Answer
from service.errors import Abandoned, DeadlineExceeded
from service.gate.reply import Reply

GRACE_S: Final = 0.05


class Watch:
    """`with` it around everything that a request may wait for. Raises DeadlineExceeded, Abandoned.

    Use it inside the task that serves the request; `receive` must not be awaited by anybody else
    once `answer` has been called.
    """

    __slots__ = (
        "_deadline_s",
        "_expired",
        "_future",
        "_listener",
        "_loop",
        "_receive",
        "_reply",
        "_task",
        "_timeout_s",
        "_timer",
    )  # fmt: skip

    def __init__(self, receive: Receive, timeout_s: float, reply: Reply | None = None) -> None:
        self._receive = receive
        self._reply = reply
        self._timeout_s = timeout_s
        self._future: asyncio.Future[Answer] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._expired = False

    def __enter__(self) -> "Watch":
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._deadline_s = self._loop.time() + self._timeout_s
        if self._reply is None and self._timeout_s > GRACE_S:
            self._timer = self._loop.call_later(GRACE_S, self._wake)
        else:
            self._timer = self._loop.call_later(max(0.0, self._timeout_s), self._expire)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._reply is not None:
            self._reply.on_hang_up = None
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None  # it ends with an error that holds this watch
        cancelled_by_us = self._expired and kind is asyncio.CancelledError
        if cancelled_by_us and self._task is not None and self._task.uncancel() == 0:
            raise self._too_late() from None

    async def answer(self, future: "asyncio.Future[Answer]") -> Answer:
        """The answer that this future brings in time."""
        self._future = future
        if self._reply is not None:
            self._reply.on_hang_up = self._abandon
        return await future

    def _wake(self) -> None:
        """This request is not one of the quick ones."""
        self._timer = self._loop.call_at(self._deadline_s, self._expire)
        if self._future is not None:
            self._listener = self._loop.create_task(self._listen())

    def _expire(self) -> None:
        self._expired = True
        if self._future is None:
            if self._task is not None:
                self._task.cancel()  # it still reads the body
        elif not self._future.done():
            self._future.set_exception(self._too_late())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._abandon()

    def _abandon(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_exception(Abandoned("the client closed the connection"))

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no answer within {self._timeout_s * 1000:.0f} ms: try again, or allow more with "
            "X-Request-Timeout-Ms"
        )

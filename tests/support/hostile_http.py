"""Clients that mean harm, or know no better, as rows of a table: what each sends, and how it ends.

A row sends its pieces in turn: bytes, or one of the acts below. Meanwhile the answers are read.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from tests.support.fakes import SAFETY_S
from tests.support.live import Served
from tests.support.raw_http import Raw, raw

MANY = 4096
"""Bytes in a piece of an endless stream."""


@dataclass(frozen=True)
class Endless:
    """Send this again and again, with a pause of `every_s`, until the connection ends."""

    piece: bytes
    every_s: float = 0.0


@dataclass(frozen=True)
class HalfClose:
    """Send no more, but read on."""


@dataclass(frozen=True)
class AwaitAnswer:
    """Send the next piece after this many answers."""

    n: int = 1


Piece = bytes | Endless | HalfClose | AwaitAnswer


@dataclass(frozen=True)
class Case:
    """One client: `answers` are statuses, each with the code of its problem document or "".

    `kept` says that the connection answers another request afterwards; else the service ends it.
    `detail` is part of the last problem's sentence.
    """

    name: str
    sends: tuple[Piece, ...]
    answers: tuple[tuple[int, str], ...]
    kept: bool = False
    detail: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def case(name: str, *sends: Piece, gets: Any, **rest: Any) -> Case:
    """A row; `gets` is one answer, or a list of them, and 200 is short for (200, "")."""
    answers = gets if isinstance(gets, list) else [gets]
    return Case(
        name, sends, tuple((one, "") if isinstance(one, int) else one for one in answers), **rest
    )


async def play(run: Served, one: Case) -> tuple[tuple[tuple[int, str], ...], str, bool]:
    """Play a row: its answers, the last problem's sentence, and whether the connection was kept."""
    async with asyncio.timeout(SAFETY_S), raw(run) as client:
        n_answers = asyncio.Condition()
        answers: list[tuple[int, str]] = []
        sending = asyncio.create_task(_send(client, one.sends, n_answers, answers))
        detail = ""
        try:
            while not one.kept or len(answers) < len(one.answers):
                status, _, body = await client.hears()
                problem = json.loads(body) if status >= 400 else {}
                detail = problem.get("detail", detail)
                async with n_answers:
                    answers.append((status, problem.get("code", "")))
                    n_answers.notify_all()
            await client.says(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            kept = (await client.hears())[0] == 200
        except (asyncio.IncompleteReadError, ConnectionError):
            kept = False
        finally:
            sending.cancel()
        return tuple(answers), detail, kept


async def _send(
    client: Raw, pieces: tuple[Piece, ...], n_answers: asyncio.Condition, answers: list[Any]
) -> None:
    try:
        for piece in pieces:
            if isinstance(piece, bytes):
                await client.says(piece)
            elif isinstance(piece, HalfClose):
                client.writer.write_eof()
            elif isinstance(piece, AwaitAnswer):
                async with n_answers:
                    await n_answers.wait_for(lambda n=piece.n: len(answers) >= n)
            else:
                while True:
                    await client.says(piece.piece)
                    await asyncio.sleep(piece.every_s)
    except ConnectionError:
        pass  # the service has ended the connection

"""Keeps stores of changes whole over a fork: their connections must not be used on both sides.

Before a fork every open store is held still, in parent and child it then goes on.
"""

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """A store that must know of a fork."""

    def hold_for_fork(self) -> None:
        """Wait until nobody uses the store, and let nobody use it."""
        ...

    def go_on_after_fork(self) -> None:
        """Let the store be used again, in the parent and in the child."""
        ...


_OPEN: "weakref.WeakSet[Forkable]" = weakref.WeakSet()
_HELD: list[Forkable] = []


def guard(store: Forkable) -> None:
    """Hold this store over every fork from now on, as long as it lives."""
    _OPEN.add(store)


def _before_fork() -> None:
    _HELD.extend(_OPEN)
    for store in _HELD:
        store.hold_for_fork()


def _after_fork() -> None:
    while _HELD:
        _HELD.pop().go_on_after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)

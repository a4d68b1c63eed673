"""A training that dies at one step, as by a SIGKILL."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from models.training import loop


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may catch it."""


@contextmanager
def killed_at(step: int, loop_class: Any = loop.Loop) -> Iterator[None]:
    """Whatever trains in this block dies before it takes this step; fails if nothing does."""
    take_step = loop_class._step

    def dying(self: Any, picked: Any) -> None:
        if self.progress.step == step:
            raise Killed
        take_step(self, picked)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop_class, "_step", dying)
        with pytest.raises(Killed):
            yield

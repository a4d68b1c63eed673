"""What is left to the garbage collector, which stops every answer while it runs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def _alive(kind: type) -> int:
    return sum(type(it) is kind for it in gc.get_objects())


@contextmanager
def leaving_none(kind: type, still_held: int = 0) -> Iterator[None]:
    """Fail if more than `still_held` objects of this type, made by the block, live on after it."""
    gc.collect()
    gc.disable()
    before = _alive(kind)
    try:
        yield
        assert _alive(kind) <= before + still_held
    finally:
        gc.enable()

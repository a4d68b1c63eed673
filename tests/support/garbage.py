"""What is left to the garbage collector, which stops every answer while it runs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def _alive(kind: type) -> int:
    return sum(type(it) is kind for it in gc.get_objects())


@contextmanager
def leaving_none(kind: type) -> Iterator[None]:
    """Fail where objects of this type that the block made live on, though nobody uses them."""
    gc.collect()
    gc.disable()
    before = _alive(kind)
    try:
        yield
        assert _alive(kind) <= before
    finally:
        gc.enable()

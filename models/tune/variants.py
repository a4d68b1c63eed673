"""Which indexes of a kind are built for a tuning: a few values of what shapes it most.

A kind that has no entry here is built once, as the configuration says.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from models.config import IndexConfig

_LINKS: Final = (16, 32, 48)


def variants(config: IndexConfig, n_labels: int) -> list[IndexConfig]:
    """The configurations to build of `config.kind`, its own always among them.

    >>> [each.m for each in variants(IndexConfig(kind="hnsw", m=24), 1000)]
    [24, 16, 32, 48]
    """
    shapes = _SHAPES.get(config.kind, lambda _: [])(n_labels)
    configs = [config, *(config.model_copy(update=shape) for shape in shapes)]
    return [each for place, each in enumerate(configs) if each not in configs[:place]]


def _links(n_labels: int) -> list[dict[str, Any]]:
    return [{"m": m} for m in _LINKS]


_SHAPES: Final[Mapping[str, Callable[[int], list[dict[str, Any]]]]] = {
    "hnsw": _links,
}

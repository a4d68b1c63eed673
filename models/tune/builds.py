"""Chooses which indexes a tuning builds, and which entries of their grids it tries.

Of each kind it builds the configured index, and a few others that differ in the setting which
matters most to that kind. A kind without an entry in `_SHAPES` is built once.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from typing import Any, Final, TypeVar

import numpy as np

from models.config import IndexConfig

T = TypeVar("T")
_LINKS: Final = (16, 32, 48)
_CODE_DIMS: Final = (1, 2, 4)
_GAMMAS: Final = (0.0, 0.5)
_ENTRIES: Final = 24
"""Of a longer grid this many entries are tried, evenly from the cheapest to the costliest. A
choice: the chosen entry may then cost a few percent more than the best one (docs/decisions/0016).
"""


def variants(config: IndexConfig, n_labels: int) -> list[IndexConfig]:
    """The configurations to build of the kind `config.kind`. The first is `config` itself.

    >>> [each.m for each in variants(IndexConfig(kind="hnsw", m=24), 1000)]
    [24, 16, 32, 48]
    """
    shapes = _SHAPES.get(config.kind, lambda _: [])(n_labels)
    configs = [config, *(config.model_copy(update=shape) for shape in shapes)]
    return [each for place, each in enumerate(configs) if each not in configs[:place]]


def thinned(grid: Sequence[T]) -> list[T]:
    """The whole grid, or `_ENTRIES` of it that include both ends.

    >>> thinned(range(70))[:4], thinned(range(70))[-1], thinned("abc")
    ([0, 3, 6, 9], 69, ['a', 'b', 'c'])
    """
    if len(grid) <= _ENTRIES:
        return list(grid)
    return [grid[round(place)] for place in np.linspace(0, len(grid) - 1, _ENTRIES)]


def _links(n_labels: int) -> list[dict[str, Any]]:
    return [{"m": m} for m in _LINKS]


def _lists(n_labels: int) -> list[dict[str, Any]]:
    return [{"ivf_lists": isqrt(n_labels)}, {"ivf_lists": 4 * isqrt(n_labels)}]


def _lists_of_codes(n_labels: int) -> list[dict[str, Any]]:
    twice = {"ivf_lists": 4 * isqrt(n_labels), "ivf_copies": 2}
    return [*_lists(n_labels), twice]


def _code_dims(n_labels: int) -> list[dict[str, Any]]:
    return [{"pq_dims": dims} for dims in _CODE_DIMS]


def _gammas(n_labels: int) -> list[dict[str, Any]]:
    return [{"tree_gamma": gamma} for gamma in _GAMMAS]


_SHAPES: Final[Mapping[str, Callable[[int], list[dict[str, Any]]]]] = {
    "hnsw": _links,
    "ivf-flat": _lists,
    "ivf-pq": _lists_of_codes,
    "label-tree": _gammas,
    "pq-fastscan": _code_dims,
}

"""Successive halving: all candidates on few queries, then the better half on twice as many.

Jamieson and Talwalkar, AISTATS 2016. A rung costs about the same whatever its place, so the whole
search costs a few times what measuring the survivors costs, not what the full grid would.

What is better is decided by taking turns, until half the places are taken: the best that holds the
goal with its margins; the best by the plain figures, as few queries leave a wide margin of recall;
the outermost on the Pareto front, which shows what else could be had.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

from models.tune.candidate import Candidate, Measurement
from models.tune.front import layers_of
from models.tune.goal import Goal

FEWEST_QUERIES: Final = 100
FEWEST_SURVIVORS: Final = 8

Measure = Callable[[Sequence[Candidate], int, bool], list[Measurement]]
"""Measures candidates on the first n queries; the flag says that it is the last rung."""


def rungs(n_queries: int, n_candidates: int) -> list[int]:
    """Queries of each rung, doubling up to all; one rung where halving would leave too few.

    >>> rungs(1994, 300), rungs(1994, 20), rungs(150, 300)
    ([124, 249, 498, 997, 1994], [498, 997, 1994], [150])
    """
    sizes = [n_queries]
    while n_candidates > FEWEST_SURVIVORS and sizes[0] // 2 >= FEWEST_QUERIES:
        sizes.insert(0, sizes[0] // 2)
        n_candidates = -(-n_candidates // 2)
    return sizes


def halve(
    candidates: Sequence[Candidate], n_queries: int, goal: Goal, measure: Measure
) -> list[list[Measurement]]:
    """The measurements of each rung; those of the last are on all queries."""
    found: list[list[Measurement]] = []
    sizes = rungs(n_queries, len(candidates))
    for place, size in enumerate(sizes):
        found.append(measure(candidates, size, place == len(sizes) - 1))
        keep = max(-(-len(candidates) // 2), min(FEWEST_SURVIVORS, len(candidates)))
        candidates = [each.candidate for each in better(found[-1], goal, keep)]
    return found


def better(found: Sequence[Measurement], goal: Goal, keep: int) -> list[Measurement]:
    """`keep` of the measurements, the best for the goal first."""
    places, layers = range(len(found)), layers_of(found)
    surely = [goal.distance(each) for each in found]
    plainly = [goal.distance(each, safely=False) for each in found]
    turns = (
        sorted(places, key=lambda i: (surely[i], goal.cost(found[i]))),
        sorted(places, key=lambda i: (plainly[i], goal.cost(found[i]))),
        sorted(places, key=lambda i: (layers[i], surely[i], goal.cost(found[i]))),
    )
    taken = dict.fromkeys(chain.from_iterable(zip(*turns, strict=True)))  # a set in order
    return [found[i] for i in list(taken)[:keep]]

"""Successive halving: all candidates on few queries, then the better half on twice as many.

Jamieson and Talwalkar, AISTATS 2016. Every rung costs about the same, because it has half the
candidates and twice the queries. So the search costs a few times as much as the last rung.

Three orders take turns to name the better half. The first is by the distance from the goal with its
margins. The second is by the plain distance, because on few queries the margin of recall is wide.
The third is by Pareto layer, so that the report shows what other goals could have.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

from models.tune.candidate import Candidate, Measurement
from models.tune.front import layers_of
from models.tune.goal import Goal

FEWEST_QUERIES: Final = 100
"""A choice: fewer queries leave recall too uncertain to judge by, more make the first rung slower.
"""

FEWEST_SURVIVORS: Final = 8
"""A choice: the last rung shows the reader this many alternatives, at the cost of measuring them.
"""

Measure = Callable[[Sequence[Candidate], int, bool], list[Measurement]]
"""Measures candidates on the first n queries; the flag is true for the last rung."""


def rungs(n_queries: int, n_candidates: int) -> list[int]:
    """Queries of each rung: they double up to all. One rung where there are too few to halve.

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
    """Measure and halve the candidates.

    Returns each rung's measurements, the last on all queries.
    """
    found: list[list[Measurement]] = []
    sizes = rungs(n_queries, len(candidates))
    for place, size in enumerate(sizes):
        found.append(measure(candidates, size, place == len(sizes) - 1))
        keep = max(-(-len(candidates) // 2), min(FEWEST_SURVIVORS, len(candidates)))
        candidates = [each.candidate for each in better(found[-1], goal, keep)]
    return found


def better(found: Sequence[Measurement], goal: Goal, keep: int) -> list[Measurement]:
    """The better `keep` of the measurements, in the order in which the three orders name them."""
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

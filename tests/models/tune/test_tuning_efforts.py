"""What becomes of the chosen point: it is measured again, and efforts are put around it."""

import pytest

from models.config import IndexConfig
from models.tune.candidate import Build, Candidate
from models.tune.goal import Goal
from models.tune.tuning import _confirmed, pick_efforts
from tests.support.results import tuning_measurement

BUILD = Build("hnsw")


class Bench:
    """A grid with made-up recalls, and what measuring again will find."""

    def __init__(self, recalls=(), again=()):
        self.recalls, self.again, self.asked = recalls, dict(again), []

    def candidates(self, build):
        return [Candidate.of(build, {"ef_search": place}) for place in range(len(self.recalls))]

    def sure_recall(self, candidate):
        return self.recalls[dict(candidate.params)["ef_search"]]

    def measure_anew(self, candidate):
        self.asked.append(candidate)
        return self.again[candidate]


def picked(recalls, place):
    bench = Bench(recalls)
    grid = bench.candidates(BUILD)
    chosen = tuning_measurement(candidate=grid[place], recall=recalls[place])
    efforts = pick_efforts(bench, chosen, IndexConfig(recall_fast=0.95, recall_thorough=0.999))
    assert efforts["balanced"] == grid[place]
    assert efforts["exact"] == Candidate(BUILD)
    return grid.index(efforts["fast"]), grid.index(efforts["thorough"])


@pytest.mark.parametrize(
    ("recalls", "place", "expected"),
    [
        ([0.9, 0.96, 0.97, 0.98, 0.99, 0.9995, 1.0], 3, (1, 5)),
        ([0.5, 0.6, 0.7, 0.8], 2, (1, 3)),  # no target reached: the next cheaper, the best
        ([0.99, 0.98, 0.97], 0, (0, 0)),  # nothing cheaper, and what is dearer finds less
        ([0.96, 0.98, 0.97, 0.99], 3, (0, 3)),
        ([1.0], 0, (0, 0)),
    ],
)
def test_fast_is_cheaper_and_thorough_finds_more(recalls, place, expected):
    assert picked(recalls, place) == expected


def test_a_point_that_falls_when_measured_again_gives_way_to_the_next():
    goal = Goal(p99_us=200)
    first, second = tuning_measurement(0, p99=90), tuning_measurement(1, p99=100)
    slow, same = tuning_measurement(0, p99=300), tuning_measurement(1, p99=110)
    bench = Bench(again={first.candidate: slow, second.candidate: same})
    chosen, fallen = _confirmed(bench, goal, [first, second])
    assert (chosen, fallen) == (same, [slow])


def test_where_all_fall_none_is_chosen():
    goal, first = Goal(p99_us=200), tuning_measurement(0, p99=90)
    bench = Bench(again={first.candidate: tuning_measurement(0, p99=300)})
    assert _confirmed(bench, goal, [first]) == (None, [tuning_measurement(0, p99=300)])
    assert _confirmed(bench, goal, []) == (None, [])

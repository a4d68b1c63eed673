"""Timing: every query, in random order, one at a time; disturbances are told apart from work."""

import numpy as np

from models.tune.timing import CAREFUL_PASSES, time_search, undisturbed


class Machine:
    """A clock that moves by what each search takes, and by what disturbs it now and then."""

    def __init__(self, work_us, disturbed_every=0):
        self.work_us, self.every = work_us, disturbed_every
        self.now, self.asked = 0.0, []

    def clock(self):
        return self.now

    def search(self, query):
        assert query.shape == (1, 1)
        place = int(query[0, 0])
        self.asked.append(place)
        self.now += self.work_us[place] * 1e-6
        if self.every and len(self.asked) % self.every == 0:
            self.now += 5e-3


def time_on(machine, n, carefully=False):
    queries = np.arange(n, dtype=np.float32)[:, None]
    rng = np.random.default_rng(0)
    return time_search(machine.search, queries, rng, carefully=carefully, clock=machine.clock)


def test_slow_queries_count_and_disturbances_do_not():
    work = np.full(500, 100.0)
    work[:10] = 300.0
    timing = time_on(Machine(work, disturbed_every=37), 500)
    assert (timing.p50, timing.p99) == (100.0, 300.0)
    assert timing.clocked_p99 > 5000


def test_every_query_is_asked_as_often_and_in_another_order_each_pass():
    machine = Machine(np.full(60, 10.0))
    timing = time_on(machine, 60, carefully=True)
    passes = np.array(machine.asked[50 : 50 + 60 * CAREFUL_PASSES]).reshape(-1, 60)
    assert all(sorted(order) == list(range(60)) for order in passes.tolist())
    assert len({tuple(order) for order in passes.tolist()}) == CAREFUL_PASSES
    assert (timing.cold_p50, timing.cold_p99) == (10.0, 10.0)


def test_cold_is_only_measured_with_care():
    assert time_on(Machine(np.full(60, 10.0)), 60).cold_p50 is None


def test_most_passes_may_be_disturbed_but_not_nearly_all():
    taken = np.full((9, 100), 5.0)
    taken[:6] = 50.0
    assert undisturbed(taken) == (5.0, 5.0)
    taken[6] = 50.0
    assert undisturbed(taken) == (50.0, 50.0)

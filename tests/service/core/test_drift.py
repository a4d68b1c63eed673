import numpy as np

from service.core.drift import Drift


def test_first_values_are_the_reference_in_tenths() -> None:
    drift = Drift(reference_size=100)
    drift.add(np.arange(60.0))
    assert not drift.reference.any()
    drift.add(np.arange(60.0, 100.0))
    assert drift.reference.tolist() == [10.0] * 10
    assert not drift.window.any()


def test_window_holds_recent_values_in_the_same_bins() -> None:
    drift = Drift(reference_size=100, window_size=20)
    drift.add(np.arange(100.0))
    drift.add(np.full(20, 5.0))
    assert drift.window.tolist() == [20.0] + [0.0] * 9
    drift.add(np.full(20, 95.0))
    assert drift.window.tolist() == [0.0] * 9 + [20.0]


def test_equal_values_need_no_ten_bins() -> None:
    drift = Drift(reference_size=10)
    drift.add(np.ones(10))
    drift.add(np.ones(5))
    assert drift.reference.sum() == 10
    assert np.array_equal(drift.window / 5, drift.reference / 10)

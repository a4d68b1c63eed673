import numpy as np

from service.core.drift import Drift


def test_first_values_are_the_reference_and_later_ones_are_not() -> None:
    drift = Drift(2, reference_size=100)
    drift.add(np.array([60, 0]))
    drift.add(np.array([20, 40]))
    assert drift.reference.tolist() == [80, 40]
    assert drift.window.tolist() == [0, 0]
    drift.add(np.array([5, 5]))
    assert drift.reference.tolist() == [80, 40]
    assert drift.window.tolist() == [5, 5]


def test_window_slides_by_whole_groups_and_never_holds_too_few() -> None:
    drift = Drift(2, reference_size=1, window_size=20)
    drift.add(np.array([1, 0]))
    drift.add(np.array([15, 0]))
    drift.add(np.array([0, 15]))
    assert drift.window.tolist() == [15, 15]
    drift.add(np.array([0, 15]))
    assert drift.window.tolist() == [0, 30]

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.calibration import Level, PiecewiseLinear, RawScores, load_calibration
from service.errors import ManifestInvalid


def write(folder: Path, content: Any) -> Path:
    path = folder / "calibration.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_knots_are_met_and_joined_by_lines(tmp_path: Path) -> None:
    path = write(tmp_path, {"scores": [0.0, 1.0], "probabilities": [0.2, 0.8]})
    served = load_calibration(path).apply(np.array([[-5.0, 0.0, 0.5, 1.0, 9.0]], np.float32))
    np.testing.assert_allclose(served, [[0.2, 0.2, 0.5, 0.8, 0.8]], atol=1e-6)
    assert served.dtype == np.float32


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20))
def test_order_is_kept(scores: list[float]) -> None:
    calibration = PiecewiseLinear(np.array([-1.0, 0.0, 2.0]), np.array([0.1, 0.1, 0.9]))
    ranked = np.sort(np.array(scores, np.float32))
    assert (np.diff(calibration.apply(ranked)) >= 0).all()


LEVEL = {"depth": 3, "share": 0.5, "probable": False}
KNOTS = {"scores": [-3.0, 3.0], "probabilities": [0.0, 1.0]}


def test_a_score_counts_for_less_where_the_query_has_others_like_it(tmp_path: Path) -> None:
    calibration = load_calibration(write(tmp_path, KNOTS | {"level": LEVEL}))
    alone, crowded = calibration.apply(np.array([[2.0, -9, -9], [2.0, 2.0, 2.0]], np.float32))
    # Levels are 2 and 2 + log 3; half of each is taken away, and the knots are 6 apart.
    np.testing.assert_allclose([alone[0], crowded[0]], [4 / 6, (4 - np.log(3) / 2) / 6], atol=1e-4)
    assert calibration.depth == 3


def test_what_is_asked_for_does_not_change_a_probability(tmp_path: Path) -> None:
    calibration = load_calibration(write(tmp_path, KNOTS | {"level": LEVEL}))
    best = np.array([[2.0, 1.0, 0.5, 0.0]], np.float32)
    whole = calibration.apply(best)
    for k in range(5):
        np.testing.assert_array_equal(calibration.apply(best[:, :k], best), whole[:, :k])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_probabilities_of_zero_and_one_are_scores_too(share: float) -> None:
    calibration = PiecewiseLinear(
        np.array([-40.0, 40.0]), np.array([0.0, 1.0]), Level(10, share, probable=True)
    )
    served = calibration.apply(np.array([[1.0, 0.5, 1e-3, 0.0, 0.0]], np.float32))
    assert np.isfinite(served).all()
    assert (np.diff(served) <= 0).all()


@given(st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=20), st.floats(0, 1))
def test_a_level_keeps_the_order_of_an_answer(scores: list[float], share: float) -> None:
    calibration = PiecewiseLinear(
        np.array([-1.0, 0.0, 2.0]), np.array([0.1, 0.1, 0.9]), Level(10, share, probable=False)
    )
    ranked = np.sort(np.array([scores], np.float32))[:, ::-1]
    assert (np.diff(calibration.apply(ranked)) <= 0).all()


def test_kind_of_score_is_named() -> None:
    assert RawScores().score_kind == "logit"
    assert PiecewiseLinear(np.zeros(1), np.zeros(1)).score_kind == "probability"


def test_without_calibration_scores_stay() -> None:
    scores = np.array([3.0], np.float32)
    assert RawScores().apply(scores) is scores


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        {"scores": [0.0]},
        {"scores": [], "probabilities": []},
        {"scores": ["a"], "probabilities": [0.5]},
        {"scores": ["1"], "probabilities": [0.5]},
        {"scores": [0.0], "probabilities": [True]},
        {"scores": [0.0, 1.0], "probabilities": [0.5]},
        {"scores": [1.0, 0.0], "probabilities": [0.1, 0.2]},
        {"scores": [0.0, 0.0], "probabilities": [0.1, 0.2]},
        {"scores": [0.0, 1.0], "probabilities": [0.2, 0.1]},
        {"scores": [0.0, 1.0], "probabilities": [0.2, 1.1]},
        KNOTS | {"level": None},
        KNOTS | {"level": {}},
        KNOTS | {"level": LEVEL | {"more": 1}},
        KNOTS | {"level": LEVEL | {"depth": 0}},
        KNOTS | {"level": LEVEL | {"depth": 101}},
        KNOTS | {"level": LEVEL | {"depth": 3.0}},
        KNOTS | {"level": LEVEL | {"depth": True}},
        KNOTS | {"level": LEVEL | {"share": 1.1}},
        KNOTS | {"level": LEVEL | {"share": "0.5"}},
        KNOTS | {"level": LEVEL | {"probable": 0}},
        '{"scores": [0.0, NaN], "probabilities": [0.1, 0.2]}',
        '{"scores": [0.0, 1.0], "probabilities": [0.1, NaN]}',
    ],
)
def test_what_is_no_monotone_map_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ManifestInvalid, match=r"calibration\.json"):
        load_calibration(write(tmp_path, content))

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.calibration import PiecewiseLinear, RawScores, load_calibration
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
        '{"scores": [0.0, NaN], "probabilities": [0.1, 0.2]}',
        '{"scores": [0.0, 1.0], "probabilities": [0.1, NaN]}',
    ],
)
def test_what_is_no_monotone_map_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ManifestInvalid, match=r"calibration\.json"):
        load_calibration(write(tmp_path, content))

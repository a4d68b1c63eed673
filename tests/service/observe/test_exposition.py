"""What a scrape shows of answers: histograms, drift and live recall, for one process or several."""

import numpy as np
import pytest

from service.bundle.manifest import ReferenceInfo
from service.core.drift import LENGTH_BOUNDS, SCORE_BOUNDS, histogram_counts
from service.core.live_recall import Window
from service.core.types import Prediction
from service.observe.exposition import stability_index, wilson_interval
from service.observe.telemetry import Telemetry


def answers(scores: np.ndarray, n_tokens: int = 5) -> list[Prediction]:
    return [
        Prediction(np.arange(1), np.array([s], np.float32), np.ones(2, np.float32), False, None,
                   None, n_tokens)
        for s in scores
    ]  # fmt: skip


def sample(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    telemetry.render()
    return telemetry.registry.get_sample_value(f"astrolabe_{name}", labels)


def test_top_scores_and_lengths_are_histograms() -> None:
    telemetry = Telemetry()
    telemetry.served(answers(np.array([0.05, 0.5, 0.95]), n_tokens=7))
    telemetry.served([Prediction(np.arange(0), np.zeros(0), np.ones(2), False, n_tokens=3)])
    assert sample(telemetry, "top_score_count") == 3
    assert sample(telemetry, "top_score_sum") == pytest.approx(1.5)
    assert sample(telemetry, "top_score_bucket", le="0.5") == 2
    assert sample(telemetry, "top_score_bucket", le="+Inf") == 3
    assert sample(telemetry, "query_tokens_count") == 4
    assert sample(telemetry, "query_tokens_bucket", le="4.0") == 1


def test_a_query_without_a_text_counts_its_score_but_no_length() -> None:
    telemetry = Telemetry()
    telemetry.served(answers(np.full(100, 0.5), n_tokens=0))
    assert sample(telemetry, "top_score_count") == 100
    assert sample(telemetry, "query_tokens_count") == 0


def test_drift_is_small_for_the_same_traffic_and_large_for_other() -> None:
    rng = np.random.default_rng(1)
    telemetry = Telemetry()
    telemetry.served(answers(rng.uniform(0.2, 0.8, 2000)))
    assert sample(telemetry, "score_drift", of="top_score") is None  # nothing to compare yet
    telemetry.served(answers(rng.uniform(0.2, 0.8, 4000)))
    same = sample(telemetry, "score_drift", of="top_score")
    telemetry.served(answers(rng.uniform(0.1, 0.4, 4000), n_tokens=40))
    other = sample(telemetry, "score_drift", of="top_score")
    assert same is not None
    assert same < 0.02
    assert other is not None
    assert other > 0.5
    assert (sample(telemetry, "score_drift", of="query_tokens") or 0) > 0.5


def reference(scores: np.ndarray, lengths: np.ndarray) -> ReferenceInfo:
    parts = {
        name: {
            "bounds": [float(bound) for bound in bounds],
            "counts": histogram_counts(values, bounds).tolist(),
        }
        for name, values, bounds in (
            ("top_score", scores, SCORE_BOUNDS),
            ("query_tokens", lengths, LENGTH_BOUNDS),
        )
    }
    return ReferenceInfo.model_validate({"split": "validation", "n_queries": len(scores), **parts})


def test_drift_is_from_the_reference_of_the_bundle_where_there_is_one() -> None:
    rng = np.random.default_rng(2)
    telemetry = Telemetry()
    sealed = reference(rng.uniform(0.2, 0.8, 1000), np.full(1000, 5.0))
    telemetry.shapes.set_reference(sealed)
    telemetry.served(answers(rng.uniform(0.1, 0.4, 600), n_tokens=40))
    assert (sample(telemetry, "score_drift", of="top_score") or 0) > 0.5
    assert (sample(telemetry, "score_drift", of="query_tokens") or 0) > 0.5
    telemetry.shapes.set_reference(sealed)  # the same again: nothing is forgotten
    assert sample(telemetry, "score_drift", of="top_score") is not None
    telemetry.shapes.set_reference(reference(rng.uniform(0.1, 0.4, 1000), np.full(1000, 40.0)))
    assert sample(telemetry, "score_drift", of="top_score") is None
    telemetry.served(answers(rng.uniform(0.1, 0.4, 600), n_tokens=40))
    assert (sample(telemetry, "score_drift", of="top_score") or 0) < 0.1


@pytest.mark.parametrize("unfit", ["too few", "other bounds"])
def test_a_reference_that_cannot_be_used_leaves_the_first_answers(unfit: str) -> None:
    rng = np.random.default_rng(3)
    telemetry = Telemetry()
    sealed = reference(rng.uniform(0.2, 0.8, 1000), np.full(1000, 5.0))
    if unfit == "too few":
        sealed = reference(rng.uniform(0.2, 0.8, 100), np.full(100, 5.0))
    else:
        other = sealed.top_score.model_copy(update={"bounds": [0.0, *sealed.top_score.bounds[1:]]})
        sealed = sealed.model_copy(update={"top_score": other})
    telemetry.shapes.set_reference(sealed)
    telemetry.served(answers(rng.uniform(0.1, 0.4, 2600)))
    assert sample(telemetry, "score_drift", of="top_score") is None
    telemetry.served(answers(rng.uniform(0.1, 0.4, 1000)))
    assert (sample(telemetry, "score_drift", of="top_score") or 0) < 0.1


def test_stability_index_is_zero_for_equal_shares_and_grows_with_the_distance() -> None:
    even = np.full(10, 100.0)
    assert stability_index(even * 3, even) == pytest.approx(0.0, abs=1e-4)
    near = np.array([90.0, 110.0] * 5)
    far = np.array([500.0] + [55.0] * 9)
    assert 0 < stability_index(near, even) < stability_index(far, even)


def test_live_recall_comes_with_an_interval_over_queries_not_rows() -> None:
    telemetry = Telemetry()
    assert sample(telemetry, "live_recall_at_k", point="fast") is None
    telemetry.live_recall("fast", Window(hits=95, expected=100, samples=10))
    assert sample(telemetry, "live_recall_at_k", point="fast") == pytest.approx(0.95)
    assert sample(telemetry, "live_recall_samples", point="fast") == 10
    low, high = wilson_interval(0.95, 10)
    assert sample(telemetry, "live_recall_low", point="fast") == pytest.approx(low)
    assert sample(telemetry, "live_recall_high", point="fast") == pytest.approx(high)


def test_interval_stays_within_one_and_narrows() -> None:
    assert wilson_interval(1.0, 50)[1] == 1.0
    assert wilson_interval(0.0, 50)[0] == pytest.approx(0.0)
    low, high = wilson_interval(0.9, 1000)
    assert high - low < 0.04


def test_nothing_internal_is_shown() -> None:
    telemetry = Telemetry()
    telemetry.served(answers(np.array([0.5])))
    telemetry.live_recall("fast", Window(1, 1, 1))
    assert b"internal" not in telemetry.render()

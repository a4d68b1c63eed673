import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.core.encoding.bound_runs import BoundRuns, OneThread, Place
from service.core.encoding.buckets import powers_of_two
from service.core.encoding.encoder import ATTENTION_MASK, INPUT_IDS, OnnxEncoder, open_session
from service.core.encoding.providers import GpuOptions
from service.core.types import TokenBatch
from service.errors import DeviceUnavailable
from tests.support.fakes import SAFETY_S
from tests.support.tiny_bundle import DIM, MAX_TOKENS, SPECIALS, WORDS

VOCABULARY = len(SPECIALS) + len(WORDS)
MOST_ROWS = 8


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> OnnxEncoder:
    return OnnxEncoder(tiny_bundle / "encoder.onnx", "cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["shared", "one thread"])
def bound(tiny_bundle: Path, request: pytest.FixtureRequest) -> BoundRuns:
    """The code that a GPU gets, on the CPU, which ignores ids of graphs."""
    session = open_session(tiny_bundle / "encoder.onnx", "cpu", 1)
    names = (INPUT_IDS, ATTENTION_MASK, "embedding")
    buckets = powers_of_two(MOST_ROWS, MAX_TOKENS)
    return BoundRuns(session, names, DIM, buckets, Place("cpu"), graphs=request.param)


def batch(rows: int, length: int, seed: int = 0) -> TokenBatch:
    rng = np.random.default_rng([seed, rows, length])
    ids = rng.integers(0, VOCABULARY, (rows, length))
    lengths = rng.integers(1, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    return TokenBatch(ids * mask, mask, np.zeros(rows, np.bool_))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 30])
@pytest.mark.parametrize("length", [1, 5, 8, 9, 31, 32])
def test_padded_and_bound_runs_give_what_plain_ones_give(
    plain: OnnxEncoder, bound: BoundRuns, rows: int, length: int
) -> None:
    given = batch(rows, length)
    found = bound.encode(given.ids, given.mask)
    np.testing.assert_allclose(found, plain.encode(given), atol=1e-6)
    assert found.dtype == np.float32


def test_an_answer_is_not_overwritten_by_the_next(plain: OnnxEncoder, bound: BoundRuns) -> None:
    first, second = batch(3, 9, seed=1), batch(3, 9, seed=2)
    kept = bound.encode(first.ids, first.mask)
    bound.encode(second.ids, second.mask)
    np.testing.assert_allclose(kept, plain.encode(first), atol=1e-6)


def test_lanes_at_once_do_not_mix_their_batches(plain: OnnxEncoder, bound: BoundRuns) -> None:
    batches = [batch(1 + i % 9, 1 + i % 32, seed=i) for i in range(200)]
    with ThreadPoolExecutor(8) as lanes:
        found = list(lanes.map(lambda given: bound.encode(given.ids, given.mask), batches))
    for given, rows in zip(batches, found, strict=True):
        np.testing.assert_allclose(rows, plain.encode(given), atol=1e-6)


def test_every_bucket_is_warmed_up_and_timed(bound: BoundRuns) -> None:
    took = bound.warm_up()
    assert set(took) == set(powers_of_two(MOST_ROWS, MAX_TOKENS))
    assert all(seconds > 0 for seconds in took.values())


def test_a_run_that_fails_reaches_its_caller_and_the_next_one_works(
    plain: OnnxEncoder, bound: BoundRuns
) -> None:
    wrong = np.full((2, 8), 10**6)  # no such token
    with pytest.raises(Exception, match="indices element out of data bounds"):
        bound.encode(wrong, np.ones_like(wrong))
    given = batch(2, 8)
    np.testing.assert_allclose(bound.encode(given.ids, given.mask), plain.encode(given), atol=1e-6)


def test_runs_that_nobody_needs_any_more_give_everything_back(tiny_bundle: Path) -> None:
    session = open_session(tiny_bundle / "encoder.onnx", "cpu", 1)
    names = (INPUT_IDS, ATTENTION_MASK, "embedding")
    others = set(threading.enumerate())
    runs = BoundRuns(session, names, DIM, powers_of_two(1, 8), Place("cpu"), graphs=True)
    [thread] = set(threading.enumerate()) - others
    given = batch(1, 8)
    runs.encode(given.ids, given.mask)
    gone = weakref.ref(runs)
    del runs
    thread.join(SAFETY_S)
    assert not thread.is_alive()
    assert gone() is None


def test_one_thread_computes_for_all_and_hands_errors_back() -> None:
    thread = OneThread("test")
    with ThreadPoolExecutor(4) as callers:
        names = list(callers.map(lambda _: thread.call(current_thread_name), range(20)))
    assert set(names) == {"test"}
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    assert thread.call(lambda: 5) == 5


def current_thread_name() -> str:
    return threading.current_thread().name


def gpu_encoder(folder: Path, **options: Any) -> OnnxEncoder:
    """An encoder on a GPU, or a skipped test that says why there is none."""
    gpu = GpuOptions(max_rows=MOST_ROWS, max_tokens=MAX_TOKENS, **options)
    try:
        return OnnxEncoder(folder / "encoder.onnx", "cuda", gpu=gpu)
    except DeviceUnavailable as exc:
        pytest.skip(f"no CUDA device: {exc.detail}")


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_gives_what_the_cpu_gives_for_every_shape(
    plain: OnnxEncoder, tiny_bundle: Path, graphs: bool
) -> None:
    encoder = gpu_encoder(tiny_bundle, graphs=graphs)
    for rows in (1, 2, 3, 8, 9, 30):
        for length in (1, 8, 9, 32):
            given = batch(rows, length)
            np.testing.assert_allclose(encoder.encode(given), plain.encode(given), atol=1e-3)


@pytest.mark.gpu
def test_lanes_of_a_gpu_do_not_mix_with_graphs(plain: OnnxEncoder, tiny_bundle: Path) -> None:
    encoder = gpu_encoder(tiny_bundle, graphs=True)
    batches = [batch(1 + i % 9, 1 + i % 32, seed=i) for i in range(200)]
    with ThreadPoolExecutor(4) as lanes:
        found = list(lanes.map(encoder.encode, batches))
    for given, rows in zip(batches, found, strict=True):
        np.testing.assert_allclose(rows, plain.encode(given), atol=1e-3)


@pytest.mark.gpu
def test_the_memory_limit_is_passed_on(tiny_bundle: Path) -> None:
    encoder = gpu_encoder(tiny_bundle, memory_mb=64)
    options = encoder._session.get_provider_options()["CUDAExecutionProvider"]
    assert options["gpu_mem_limit"] == str(64 << 20)


@pytest.mark.gpu
def test_a_gpu_that_is_not_there_is_refused_by_name(tiny_bundle: Path) -> None:
    gpu_encoder(tiny_bundle)  # skips where there is none at all
    with pytest.raises(DeviceUnavailable, match="CUDAExecutionProvider"):
        OnnxEncoder(tiny_bundle / "encoder.onnx", "cuda", gpu=GpuOptions(device_id=200))

"""Stand-ins through the seams: a predict that tests steer, an engine around it, a clock by hand."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from service.api.app import create_app
from service.bundle.manifest import Manifest, OperatingPoint
from service.core.labels.labels import Label
from service.core.types import PredictedBatch, Prediction, Query, StageTimings
from service.gate.gate import Gate
from service.observe.telemetry import Telemetry
from service.settings.settings import Settings
from tests.support.metrics import samples
from tests.support.tiny_bundle import tiny_manifest

SAFETY_S = 10.0
"""No wait in a test lasts longer, so a broken test fails instead of hanging."""

JSON = {"content-type": "application/json"}


class FakeClock:
    """A clock that moves only when told to; `on_read` is told after a lane's thread has read it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on_read: Callable[[], None] | None = None

    def __call__(self) -> float:
        now = self.now
        if self.on_read is not None:
            self.on_read()
        return now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakePredict:
    """Answers label row = length of the text; can be held, made to fail or to answer short."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.error: BaseException | None = None
        self.missing = 0
        self._open = threading.Event()
        self._open.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, queries: Sequence[Query]) -> PredictedBatch:
        self.batches.append([query.text for query in queries])
        self.entered.release()
        assert self._open.wait(SAFETY_S), "nobody released the fake"
        if self.error is not None:
            raise self.error
        answers = [self.answer(query) for query in queries]
        return PredictedBatch(answers[: len(answers) - self.missing], _TIMINGS)

    def hold(self) -> None:
        """Make calls wait until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Let waiting and later calls through."""
        self._open.set()

    async def wait_entered(self) -> None:
        """Return once one more call is computing."""
        assert await asyncio.to_thread(self.entered.acquire, True, SAFETY_S)

    def texts(self) -> list[str]:
        """Every text that reached this predict, in order."""
        return [text for batch in self.batches for text in batch]

    @staticmethod
    def answer(query: Query) -> Prediction:
        """The answer to one query."""
        rows = (np.arange(query.k, dtype=np.int64) + len(query.text)) % 50
        scores = np.linspace(0.9, 0.1, query.k, dtype=np.float32)
        n_tokens = 3 if query.vector is None else 0
        return Prediction(rows, scores, np.ones(4, np.float32), truncated=False, n_tokens=n_tokens)


_TIMINGS = StageTimings(0.001, 0.002, 0.003, n_tokens=4, n_padded_tokens=5)


def fake_manifest(**changes: Any) -> Manifest:
    """The tiny bundle's manifest without a folder."""
    raw = tiny_manifest() | {"bundle_id": "b" * 64, "files": {}} | changes
    return Manifest.model_validate(raw)


def points_of_cost(**costs_us: float) -> list[OperatingPoint]:
    """Operating points of these search costs, each finding more than those named before it."""
    return [
        OperatingPoint(
            name=name,
            params={},
            recall_at_10=0.9 + i / 100,
            p_at_1=50.0,
            p_at_5=30.0,
            search_us_p50=cost_us,
            search_us_p99=cost_us,
            machine="test",
        )
        for i, (name, cost_us) in enumerate(costs_us.items())
    ]


def fake_engine(predict: FakePredict, **changes: Any) -> Any:
    """What create_app reads of an Engine, around a fake predict."""
    manifest = fake_manifest(**changes)
    labels = [Label(f"L{i:03d}", f"label {i}", {"i": i}) for i in range(50)]
    return SimpleNamespace(
        manifest=manifest,
        predict=predict,
        efforts=tuple(point.name for point in manifest.operating_points),
        calibration=SimpleNamespace(score_kind="probability"),
        encoder=SimpleNamespace(device="cpu"),
        folder=None,
        files=None,
        rules=None,
        raw_score_kind=lambda effort: "logit",
        catalogue_seq=0,
        variant="fp32",
        catalogue=SimpleNamespace(
            label=labels.__getitem__,
            poll=lambda: False,
            close=lambda: None,
            fields=None,
            n_delta=0,
            n_tombstones=0,
        ),
    )


def fake_settings(**changes: Any) -> Settings:
    """Settings for tests: one lane, no drain delay, and deadlines that a busy machine meets."""
    values: dict[str, Any] = {"bundle": "unused", "lanes": 1, "drain_delay_s": 0.0}
    values |= {"drain_timeout_s": 5.0, "request_timeout_ms": 30_000}
    return Settings(**(values | changes))


class Running:
    """A started application and a client that talks to it in process."""

    def __init__(self, app: Gate, predict: FakePredict) -> None:
        self.app = app
        self.predict = predict
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://test",
        )

    async def recommend(self, body: Any, **headers: str) -> httpx.Response:
        """POST a body to /v1/recommend: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/v1/recommend", content=content, headers=JSON | names)

    async def metric(self, sample: str) -> float:
        """Value of one line of /metrics; 0 where it is not there yet."""
        page = self.app.serving.telemetry.render().decode()
        return samples(page).get(sample, 0.0)


@asynccontextmanager
async def running(
    predict: FakePredict | None = None,
    engine: Any = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """An application with its lanes started; drained and closed at the end."""
    predict = predict or FakePredict()
    options = {} if clock is None else {"clock": clock}
    app = create_app(
        engine or fake_engine(predict), fake_settings(**settings), Telemetry(), **options
    )
    async with app.app.router.lifespan_context(app.app):
        service = Running(app, predict)
        try:
            async with service.client:
                yield service
        finally:
            predict.release()

"""Serving: what a process has once: settings, metrics, deployments, shedding, and its readiness.

All routes answer from this object. It knows nothing of HTTP.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from service.core.engine import Engine
from service.core.types import Query
from service.errors import AstrolabeError, BundleError, NotReady, OverloadError, ShuttingDown
from service.feedback.feedback import Feedback
from service.observe.telemetry import Telemetry
from service.overload.shedding import PATH, Shedding
from service.serving.deployment import Deployment, open_changed_engine
from service.serving.deployments import Deployments, OpenBundle
from service.settings.settings import Settings

log = logging.getLogger(__name__)

DEEP_TIMEOUT_S: Final = 2.0
"""How long a deep probe waits for an answer: as long as a request by default, whose timeout
(`request_timeout_ms`) is 2 s too."""

DEEP_EVERY_S: Final = 1.0
"""A deep probe that answered serves the others for this long. A choice: anybody may send probes,
and they must not become a load."""


@dataclass(slots=True)
class Serving:
    """The state of a serving process. Deadlines are seconds of `clock`, which the batchers share.

    `feedback` is None where no folder for it is set. `draining` is true once the process is
    shutting down. `all_stop` then says whether the whole service is, and not just this worker of
    it.
    """

    deployments: Deployments
    settings: Settings
    telemetry: Telemetry
    clock: Callable[[], float]
    shedding: Shedding
    feedback: Feedback | None = None
    draining: bool = False
    all_stop: Callable[[], bool] = lambda: True
    _last_answer_s: float = -math.inf
    _drain: "asyncio.Task[None] | None" = None

    @property
    def default(self) -> Deployment:
        """The deployment that answers requests that name no model, canary aside."""
        return self.deployments.default

    def effort_steps_down(self) -> int:
        """The most operating points by which any deployment's ceiling on effort is lowered now."""
        return max(deployment.effort_steps_down() for deployment in self.deployments)

    def check_ready(self) -> None:
        """Raise ShuttingDown while the service drains, and NotReady where lanes do not work."""
        if self.draining and self.all_stop():
            raise ShuttingDown("the service is shutting down: use another replica")
        if fault := self.deployments.health():
            raise NotReady(fault, retry_after_s=1.0)

    async def check_answers(self) -> None:
        """Have every open bundle answer a text; raises NotReady or OverloadError where one fails.

        First it looks whether a file of the bundle was changed on disk. The text then takes the
        queue, encoder and index that every request takes, and its labels are read. Does nothing if
        all succeeded within the last second, because probes need no key.
        """
        self.check_ready()
        if self.clock() - self._last_answer_s < DEEP_EVERY_S:
            return
        for deployment in list(self.deployments):
            try:
                async with asyncio.timeout(DEEP_TIMEOUT_S):
                    await self._check_answer(deployment)
            except TimeoutError:
                detail = f"model {deployment.name}: no answer to a text within {DEEP_TIMEOUT_S:g} s"
                raise NotReady(detail, retry_after_s=1.0) from None
        self._last_answer_s = self.clock()

    async def _check_answer(self, deployment: Deployment) -> None:
        name, engine = deployment.name, deployment.engine
        # The files come first: to read a part that was cut off kills the process.
        files = engine.files
        if files is not None and (fault := await asyncio.to_thread(files.fault)):
            raise NotReady(f"model {name}: {fault}", retry_after_s=1.0)
        defaults = engine.manifest.defaults
        query = Query("ready", defaults.k, defaults.effort)
        answer = await deployment.batcher.submit([query], self.clock() + DEEP_TIMEOUT_S)
        try:
            for row in answer.predictions[0].rows:
                engine.catalogue.label(int(row))
        except BundleError as exc:
            log.error(
                "a label cannot be read", extra={"fields": {"model": name, "why": exc.detail}}
            )
            raise NotReady(
                f"model {name}: a label of the bundle cannot be read", retry_after_s=1.0
            ) from exc

    async def drain(self) -> None:
        """Stop intake and settle all accepted requests; a second call waits for the first."""
        self.draining = True
        if self._drain is None:
            self._drain = asyncio.create_task(
                self.deployments.drain(self.settings.drain_timeout_s), name="drain"
            )
        await self._drain


def open_serving(
    engines: Sequence[Engine],
    settings: Settings,
    telemetry: Telemetry,
    clock: Callable[[], float],
    open_: OpenBundle = open_changed_engine,
) -> Serving:
    """Make a deployment of each engine, the first as default. Let telemetry read their state."""
    deployments = Deployments(engines, settings, telemetry, clock, open_)

    def count_refusal(error: OverloadError) -> None:
        telemetry.rejected(error.code)
        telemetry.request_finished(PATH.decode(), error.status, 0.0)

    def would_refuse(deadline_s: float, bulk: bool, n_ahead: int) -> AstrolabeError | None:
        only = deployments.only
        if only is None or only.cache is not None:
            # Only the body tells which bundle answers, or whether the cache holds the answer.
            return None
        return only.batcher.refusal(deadline_s, bulk, n_ahead)

    shedding = Shedding(clock, settings.request_timeout_ms / 1000, would_refuse, count_refusal)
    feedback = Feedback.open(settings, telemetry)
    serving = Serving(deployments, settings, telemetry, clock, shedding, feedback)
    telemetry.describe_device(requested=settings.device, active=engines[0].encoder.device)
    telemetry.watch(
        queue_tokens=lambda: sum(one.batcher.waiting_tokens for one in deployments),
        effort_steps_down=serving.effort_steps_down,
        resting_connections=lambda: len(shedding.resting),
        delta_labels=lambda: max(one.engine.catalogue.n_delta for one in deployments),
        tombstones=lambda: max(one.engine.catalogue.n_tombstones for one in deployments),
    )
    return serving

"""Serving: the one object that the routes answer from, and the truth about readiness.

Holds what the process has once: settings, metrics, the open deployments, and whether it is on its
way out. It does no HTTP.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from service.core.engine import Engine
from service.core.types import Query
from service.errors import AstrolabeError, NotReady, OverloadError, ShuttingDown
from service.observe.telemetry import Telemetry
from service.overload.shedding import PATH, Shedding
from service.serving.deployment import Deployment
from service.serving.deployments import Deployments
from service.settings.settings import Settings

DEEP_TIMEOUT_S: Final = 2.0
DEEP_EVERY_S: Final = 1.0


@dataclass(slots=True)
class Serving:
    """Open bundles being served. `clock` is the batchers'; deadlines are on it."""

    deployments: Deployments
    settings: Settings
    telemetry: Telemetry
    clock: Callable[[], float]
    shedding: Shedding
    draining: bool = False
    _answered_s: float = -math.inf
    _drain: "asyncio.Task[None] | None" = None

    @property
    def default(self) -> Deployment:
        """What answers a request that names no model."""
        return self.deployments.default

    def effort_steps_down(self) -> int:
        """Steps by which the ceiling on effort is lowered now, of the model where it is most."""
        return max(deployment.effort_steps_down() for deployment in self.deployments)

    def check_ready(self) -> None:
        """Return where the service answers; raises NotReady or ShuttingDown where it does not."""
        if self.draining:
            raise ShuttingDown("the service is shutting down: use another replica")
        if fault := self.deployments.health():
            raise NotReady(fault, retry_after_s=1.0)

    async def check_answers(self) -> None:
        """Have the default model answer a text; raises NotReady, OverloadError where it does not.

        By the same queue, encoder and index as any request, so it says what they would meet. Once
        a second at most, since probes need no key.
        """
        self.check_ready()
        if self.clock() - self._answered_s < DEEP_EVERY_S:
            return
        deployment, deadline_s = self.default, self.clock() + DEEP_TIMEOUT_S
        query = Query("ready", 1, deployment.engine.manifest.defaults.effort)
        try:
            async with asyncio.timeout(DEEP_TIMEOUT_S):
                await deployment.batcher.submit([query], deadline_s)
        except TimeoutError:
            detail = f"no answer to a text within {DEEP_TIMEOUT_S:g} s"
            raise NotReady(detail, retry_after_s=1.0) from None
        self._answered_s = self.clock()

    async def drain(self) -> None:
        """Stop intake and finish or fail what was accepted; a second call joins the first."""
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
) -> Serving:
    """Wire a deployment around each engine, the first being the default."""
    deployments = Deployments(engines, settings, telemetry, clock)

    def count(error: OverloadError) -> None:
        telemetry.rejected(error.code)
        telemetry.request_finished(PATH.decode(), error.status, 0.0)

    def ask(deadline_s: float, bulk: bool, others: int) -> AstrolabeError | None:
        only = deployments.only
        if only is None or only.cache is not None:
            return None  # the body could choose another bundle, or be known to the cache
        return only.batcher.refusal(deadline_s, bulk, others)

    shedding = Shedding(clock, settings.request_timeout_ms / 1000, ask, count)
    serving = Serving(deployments, settings, telemetry, clock, shedding)
    telemetry.describe_device(requested=settings.device, active=engines[0].encoder.device)
    telemetry.watch(
        queue_tokens=lambda: sum(open_.batcher.waiting_tokens for open_ in deployments),
        effort_steps_down=serving.effort_steps_down,
        resting_connections=lambda: len(shedding.resting),
        delta_labels=lambda: max(open_.engine.catalogue.n_delta for open_ in deployments),
        tombstones=lambda: max(open_.engine.catalogue.n_tombstones for open_ in deployments),
    )
    return serving

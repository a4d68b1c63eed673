"""Serving: the one object that the routes answer from, and the truth about readiness.

Holds what the process has once: settings, metrics, the open deployments, and whether it is on its
way out. It does no HTTP.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.api.deployment import Deployment
from service.api.deployments import Deployments
from service.core.engine import Engine
from service.errors import NotReady, ShuttingDown
from service.settings import Settings
from service.telemetry import Telemetry


@dataclass(slots=True)
class Serving:
    """Open bundles being served. `clock` is the batchers'; deadlines are on it."""

    deployments: Deployments
    settings: Settings
    telemetry: Telemetry
    clock: Callable[[], float]
    draining: bool = False
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
    serving = Serving(deployments, settings, telemetry, clock)
    telemetry.watch_queue(lambda: sum(open_.batcher.waiting_tokens for open_ in deployments))
    telemetry.describe_device(requested=settings.device, active=engines[0].encoder.device)
    telemetry.watch_effort(serving.effort_steps_down)
    return serving

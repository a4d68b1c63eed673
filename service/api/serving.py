"""Serving: the one object that the routes answer from, and the truth about readiness.

Holds the open engine and its batcher, and whether the process is on its way out. It does no HTTP.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from service.core.adaptive_effort import AdaptiveEffort, EffortPolicy
from service.core.batcher import BatchLimits, MicroBatcher
from service.core.engine import Engine
from service.cpus import usable_cpus
from service.errors import NotReady, ShuttingDown
from service.settings import Settings
from service.telemetry import Telemetry
from service.version import __version__

log = logging.getLogger(__name__)

GPU_LANES = 2
"""On a GPU two lanes let one batch tokenise and search while the other is encoded."""


@dataclass(slots=True)
class Serving:
    """An open bundle being served. `clock` is the batcher's; deadlines are on it.

    `effort` is None where effort is not adapted to the load.
    """

    engine: Engine
    batcher: MicroBatcher
    settings: Settings
    telemetry: Telemetry
    clock: Callable[[], float]
    effort: AdaptiveEffort | None = None
    draining: bool = False
    _drain: "asyncio.Task[None] | None" = None

    def effort_steps_down(self) -> int:
        """Steps by which the ceiling on effort is lowered now."""
        return self.effort.steps_down(self.batcher.oldest_wait_s()) if self.effort else 0

    def check_ready(self) -> None:
        """Return where the service answers; raises NotReady or ShuttingDown where it does not."""
        if self.draining:
            raise ShuttingDown("the service is shutting down: use another replica")
        if fault := self.batcher.health():
            raise NotReady(fault, retry_after_s=1.0)

    async def drain(self) -> None:
        """Stop intake and finish or fail what was accepted; a second call joins the first."""
        self.draining = True
        if self._drain is None:
            self._drain = asyncio.create_task(
                self.batcher.drain(self.settings.drain_timeout_s), name="drain"
            )
        await self._drain


def open_serving(
    engine: Engine, settings: Settings, telemetry: Telemetry, clock: Callable[[], float]
) -> Serving:
    """Wire a batcher to an engine and name both in the metrics."""
    manifest = engine.manifest
    limits = BatchLimits(
        lanes=settings.lanes or auto_lanes(engine.encoder.device, settings.intra_op_threads),
        max_tokens=manifest.tokenizer.max_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
        batch_wait_s=settings.batch_wait_ms / 1000,
        stuck_after_s=settings.stuck_after_s,
    )
    effort = open_effort(engine, settings, clock) if settings.adaptive_effort else None
    batcher = MicroBatcher(engine.predict, limits, telemetry, clock, effort)
    telemetry.watch_queue(lambda: batcher.waiting_tokens)
    telemetry.describe_bundle(bundle_id=manifest.bundle_id, name=manifest.name, version=__version__)
    telemetry.describe_device(requested=settings.device, active=engine.encoder.device)
    serving = Serving(engine, batcher, settings, telemetry, clock, effort)
    telemetry.watch_effort(serving.effort_steps_down)
    return serving


def open_effort(engine: Engine, settings: Settings, clock: Callable[[], float]) -> AdaptiveEffort:
    """The ceiling on effort, between the operating points of this bundle."""
    policy = EffortPolicy(
        target_s=settings.adaptive_target_ms / 1000,
        clear_s=settings.adaptive_clear_ms / 1000,
        interval_s=settings.adaptive_interval_ms / 1000,
        hold_s=settings.adaptive_hold_s,
    )
    effort = AdaptiveEffort(engine.manifest.operating_points, policy, clock)
    if len(effort.steps) == 1:
        log.warning(
            "adaptive effort has no effect: no operating point of this bundle is cheaper to search "
            "than %s and finds less",
            effort.steps[0],
        )
    return effort


def auto_lanes(device: str, intra_op_threads: int) -> int:
    """Lanes for a device where the settings leave the number open."""
    return max(1, usable_cpus() // intra_op_threads) if device == "cpu" else GPU_LANES

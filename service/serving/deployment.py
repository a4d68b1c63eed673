"""Deployment: one open bundle being served, with its own batcher and the requests it understands.

What differs between two bundles lives here: engine, lanes, the ceiling on effort, defaults and
limits that requests are validated against. What the process has once is
`service.serving.serving`'s.
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from service.bundle.manifest import EXACT, Manifest
from service.bundle.verify import read_manifest, resolve
from service.core.batching.adaptive_effort import AdaptiveEffort, EffortPolicy
from service.core.batching.admission import BatchLimits
from service.core.batching.batcher import MicroBatcher
from service.core.catalogue.label_rules import read_label_rules
from service.core.encoding.providers import GpuOptions
from service.core.engine import Engine
from service.core.live_recall import LiveRecall
from service.errors import SettingsInvalid
from service.observe.telemetry import Telemetry
from service.serving.answer_cache import AnswerCache
from service.serving.cpus import usable_cpus
from service.serving.request_models import RequestLimits, RequestModels, request_models
from service.settings.settings import PREFIX, Settings

log = logging.getLogger(__name__)

GPU_LANES = 2
"""On a GPU two lanes let one batch tokenise and search while the other is encoded."""


class Deployment:
    """An engine and all that answers from it. `clock` is the batcher's; deadlines are on it.

    `effort` is None where effort is not adapted to the load, `cache` where answers are not kept.
    """

    __slots__ = (
        "batcher",
        "bundle_id",
        "cache",
        "effort",
        "engine",
        "folder",
        "live_recall",
        "name",
        "request_models",
    )

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        manifest = engine.manifest
        self.engine = engine
        self.folder = engine.folder
        self.name = manifest.name
        self.bundle_id = manifest.bundle_id
        self.effort = open_effort(engine, settings, clock) if settings.adaptive_effort else None
        self.cache = AnswerCache(settings.cache_entries) if settings.cache_entries else None
        self.live_recall = open_live_recall(engine, settings, telemetry)
        self.request_models: RequestModels = request_models(_limits(engine, settings))
        self.batcher = MicroBatcher(
            engine.predict, _batch_limits(engine, settings), telemetry, clock, self.effort
        )

    def start(self) -> None:
        """Start the lanes, in the loop that serves; metadata is indexed beside them."""
        self.batcher.start()
        catalogue = self.engine.catalogue
        # Otherwise the first filter would wait for it: 2 s for 1,000,000 labels.
        Thread(target=lambda: catalogue.fields, name="fields", daemon=True).start()

    async def drain(self, timeout_s: float) -> None:
        """Finish or fail what was accepted, then measure nothing and keep no change any more."""
        await self.batcher.drain(timeout_s)
        if self.live_recall is not None:
            self.live_recall.stop()
        self.engine.catalogue.close()

    def effort_steps_down(self) -> int:
        """Steps by which the ceiling on effort is lowered now."""
        return self.effort.steps_down(self.batcher.oldest_wait_s()) if self.effort else 0


def open_engine(path: Path, settings: Settings) -> Engine:
    """The bundle that a path means, opened as the settings say. Blocking.

    Raises BundleError, SettingsInvalid where the limits do not fit it, DeviceUnavailable.
    """
    folder = resolve(path)
    check_limits(settings, read_manifest(folder))
    engine = Engine.open(
        folder,
        device=settings.device,
        intra_op_threads=settings.intra_op_threads,
        max_batch_tokens=settings.max_batch_tokens,
        variant=settings.encoder_variant,
        gpu=gpu_options(settings),
    )
    if settings.device == "auto" and engine.encoder.device == "cpu":
        log.info("device auto found no GPU: the encoder runs on the CPU")
    return engine


def check_limits(settings: Settings, manifest: Manifest) -> None:
    """Refuse limits that this bundle cannot work under; raises SettingsInvalid."""
    if settings.max_batch_tokens < manifest.tokenizer.max_tokens:
        raise SettingsInvalid(
            f"max_batch_tokens ({settings.max_batch_tokens}) is below the bundle's max_tokens "
            f"({manifest.tokenizer.max_tokens}): raise {PREFIX}MAX_BATCH_TOKENS"
        )
    max_tokens = manifest.tokenizer.max_tokens
    if settings.max_queue_tokens < settings.max_queries * max_tokens:
        raise SettingsInvalid(
            f"max_queue_tokens ({settings.max_queue_tokens}) cannot hold one request of "
            f"max_queries ({settings.max_queries}) texts of max_tokens ({max_tokens}): lower "
            f"{PREFIX}MAX_QUERIES, or raise {PREFIX}MAX_QUEUE_TOKENS to "
            f"{settings.max_queries * max_tokens}"
        )
    if settings.max_k < manifest.defaults.k:
        raise SettingsInvalid(
            f"max_k ({settings.max_k}) is below the bundle's default k ({manifest.defaults.k}): "
            f"raise {PREFIX}MAX_K"
        )


def gpu_options(settings: Settings) -> GpuOptions:
    """What the settings say of the GPU, as the encoder takes it."""
    return GpuOptions(
        device_id=settings.gpu_device_id,
        memory_mb=settings.gpu_memory_mb,
        graphs=settings.cuda_graphs,
        engine_cache=settings.tensorrt_cache,
        max_rows=settings.gpu_max_rows,
    )


def with_changes(engine: Engine, settings: Settings) -> Engine:
    """The engine with the changes of labels that `state_dir` keeps, and under its rules.

    Raises CatalogueError, SettingsInvalid.
    """
    rules = None
    if settings.label_rules is not None:
        # Read at every opening, so that a new bundle may come with new rules.
        rules = read_label_rules(settings.label_rules).get(engine.manifest.name)
    if settings.state_dir is not None:
        engine = engine.with_changes(settings.state_dir)
    if rules is None:
        return engine
    try:
        return engine.with_rules(rules)
    except SettingsInvalid:
        engine.catalogue.close()
        raise


def open_changed_engine(path: Path, settings: Settings) -> Engine:
    """As `open_engine`, with changes and rules; raises CatalogueError too."""
    return with_changes(open_engine(path, settings), settings)


def check_ruled_models(engines: Sequence[Engine], settings: Settings) -> None:
    """Refuse rules of a model that no engine serves; raises SettingsInvalid."""
    if settings.label_rules is None:
        return
    served = [engine.manifest.name for engine in engines]
    for name in read_label_rules(settings.label_rules):
        if name not in served:
            raise SettingsInvalid(
                f"label_rules: {settings.label_rules} has rules of {name!r}, this service has "
                f"{', '.join(served)}: use the name of a model, or they would hold for nothing"
            )


def open_live_recall(engine: Engine, settings: Settings, telemetry: Telemetry) -> LiveRecall | None:
    """The measuring of live recall, where it is wanted and the bundle can search exactly."""
    share = settings.live_recall_share
    if not share:
        return None
    if EXACT not in engine.efforts:
        log.warning("live recall is off: this bundle has no operating point %s", EXACT)
        return None
    return LiveRecall(engine.search, share, telemetry)


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


def auto_lanes(device: str, intra_op_threads: int, workers: int = 1) -> int:
    """Lanes of one worker for a device, where the settings leave the number open."""
    lanes = usable_cpus() // intra_op_threads if device == "cpu" else GPU_LANES
    return max(1, lanes // workers)


def _batch_limits(engine: Engine, settings: Settings) -> BatchLimits:
    return BatchLimits(
        lanes=settings.lanes
        or auto_lanes(engine.encoder.device, settings.intra_op_threads, settings.workers),
        max_tokens=engine.manifest.tokenizer.max_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue_tokens=settings.max_queue_tokens,
        batch_wait_s=settings.batch_wait_ms / 1000,
        stuck_after_s=settings.stuck_after_s,
        bulk_queue_share=settings.bulk_queue_share,
        max_wait_s=settings.max_queue_wait_ms / 1000 or math.inf,
        max_batch_s=settings.max_batch_ms / 1000 or math.inf,
    )


def _limits(engine: Engine, settings: Settings) -> RequestLimits:
    manifest = engine.manifest
    return RequestLimits(
        max_queries=settings.max_queries,
        max_text_chars=settings.max_text_chars,
        max_k=settings.max_k,
        max_filter_ids=settings.max_filter_ids,
        default_k=manifest.defaults.k,
        default_effort=manifest.defaults.effort,
        efforts=engine.efforts,
        item_filter=manifest.filter is not None,
        dim=manifest.encoder.dim,
    )

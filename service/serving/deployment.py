"""Deployment: one open bundle with its own batcher, cache and request models.

A deployment holds everything that differs between two bundles: the engine, the lanes, the ceiling
on effort, and the defaults and limits against which requests are validated.
`service.serving.serving` holds what the process has once.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from service.bundle.manifest import EXACT, Manifest
from service.bundle.signatures import read_bundle_keys
from service.bundle.verify import read_manifest, resolve
from service.core.batching.adaptive_effort import AdaptiveEffort, EffortPolicy
from service.core.batching.admission import BatchLimits
from service.core.batching.batcher import MicroBatcher
from service.core.catalogue.label_rules import read_label_rules
from service.core.catalogue.postgres_store import PostgresStore
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

FIELDS_TRIES = 3
"""How often the index of metadata is tried beside the requests. A choice: after that a request with
a filter tries, and gets the error."""

GPU_LANES = 2
"""With two lanes, the CPU tokenises and searches one batch while the GPU encodes the other."""


class Deployment:
    """An engine, and the parts that answer requests with it. Deadlines are seconds of `clock`.

    `effort` is None where `adaptive_effort` is off, `cache` where `cache_entries` is 0.
    """

    __slots__ = (
        "_background",
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
        self._background = telemetry.background
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
        """Start the lanes on the running event loop, and index metadata fields in a thread."""
        self.batcher.start()
        catalogue = self.engine.catalogue
        # Otherwise the first request with a filter would wait: 2 s for 1,000,000 labels.
        self._background.thread("fields", lambda: catalogue.fields, FIELDS_TRIES)

    async def drain(self, timeout_s: float) -> None:
        """Stop intake, and answer or fail all accepted requests within `timeout_s`.

        Then stop measuring live recall and close the catalogue.
        """
        await self.batcher.drain(timeout_s)
        # In a thread, because both wait: for a search, and for a change that waits for the disk.
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self.live_recall is not None:
            self.live_recall.stop()
        self.engine.catalogue.close()

    def effort_steps_down(self) -> int:
        """By how many operating points the ceiling on effort is lowered now; 0 where it is not."""
        return self.effort.steps_down(self.batcher.oldest_wait_s()) if self.effort else 0


def open_engine(path: Path, settings: Settings) -> Engine:
    """Open the bundle at a path, or the one that its CURRENT file names. Blocking.

    Raises BundleError and DeviceUnavailable, and SettingsInvalid where the settings' limits do not
    fit the bundle, or where a file of `bundle_keys` holds no keys.
    """
    # Read the keys again for every bundle, so that one can be withdrawn without a restart.
    keys = read_bundle_keys(settings.bundle_keys)
    folder = resolve(path)
    check_limits(settings, read_manifest(folder, keys))
    engine = Engine.open(
        folder,
        device=settings.device,
        intra_op_threads=settings.intra_op_threads,
        max_batch_tokens=settings.max_batch_tokens,
        variant=settings.encoder_variant,
        gpu=gpu_options(settings),
        keys=keys,
    )
    if settings.device == "auto" and engine.encoder.device == "cpu":
        log.info("device auto found no GPU: the encoder runs on the CPU")
    return engine


def check_limits(settings: Settings, manifest: Manifest) -> None:
    """Raise SettingsInvalid where the settings' limits do not fit this bundle."""
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
    """The settings of the GPU in the form that the encoder takes."""
    return GpuOptions(
        device_id=settings.gpu_device_id,
        memory_mb=settings.gpu_memory_mb,
        graphs=settings.cuda_graphs,
        engine_cache=settings.tensorrt_cache,
        max_rows=settings.gpu_max_rows,
    )


def with_changes(engine: Engine, settings: Settings) -> Engine:
    """The engine with the label changes from `catalogue_url` or `state_dir`, and its model's rules.

    Raises CatalogueError, SettingsInvalid.
    """
    rules = None
    if settings.label_rules is not None:
        # Read the file again for every bundle, so that an operator can change both at once.
        rules = read_label_rules(settings.label_rules).get(engine.manifest.name)
    if settings.catalogue_url is not None:
        url = settings.catalogue_url.get_secret_value()
        engine = engine.with_store(PostgresStore(url, engine.manifest.name))
    elif settings.state_dir is not None:
        engine = engine.with_changes(settings.state_dir)
    if rules is None:
        return engine
    try:
        return engine.with_rules(rules)
    except SettingsInvalid:
        engine.catalogue.close()
        raise


def open_changed_engine(path: Path, settings: Settings) -> Engine:
    """Open a bundle with its label changes and rules.

    Raises what `open_engine` raises, and CatalogueError.
    """
    return with_changes(open_engine(path, settings), settings)


def check_label_rules(engines: Sequence[Engine], settings: Settings) -> None:
    """Raise SettingsInvalid where the file of label rules names a model that no engine serves."""
    if settings.label_rules is None:
        return
    model_names = [engine.manifest.name for engine in engines]
    for name in read_label_rules(settings.label_rules):
        if name not in model_names:
            raise SettingsInvalid(
                f"label_rules: {settings.label_rules} has rules for the model {name!r}, but this "
                f"service has only {', '.join(model_names)}: use one of these names"
            )


def open_live_recall(engine: Engine, settings: Settings, telemetry: Telemetry) -> LiveRecall | None:
    """The measurement of live recall; None where it is off or the bundle cannot search exactly."""
    share = settings.live_recall_share
    if not share:
        return None
    if EXACT not in engine.efforts:
        log.warning("live recall is off: this bundle has no operating point %s", EXACT)
        return None
    return LiveRecall(engine.search, share, telemetry, background=telemetry.background)


def open_effort(engine: Engine, settings: Settings, clock: Callable[[], float]) -> AdaptiveEffort:
    """The ceiling on effort, which moves among this bundle's operating points."""
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
    """Number of lanes for each of `workers` processes, where the setting `lanes` is 0."""
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
        fields=[field.name for field in manifest.tokenizer.fields],
    )

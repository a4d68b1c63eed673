"""Reports on the open bundles: the answers of /v1/info, /v1/models and the admin routes."""

from datetime import datetime
from typing import Literal

from service.api.schemas import (
    AdaptiveEffortReport,
    BundleReport,
    DeviceReport,
    EncoderReport,
    InfoResponse,
    LabelRulesReport,
    LimitsReport,
    ModelObject,
    ModelReport,
    ModelsResponse,
)
from service.core.engine import Engine
from service.serving.deployment import Deployment
from service.serving.deployments import Deployments, Slot
from service.serving.serving import Serving
from service.version import __version__


def models_report(deployments: Deployments) -> ModelsResponse:
    """Every model with its open bundles."""
    default = deployments.default.name
    return ModelsResponse(
        models=[
            ModelReport(
                name=name,
                default=name == default,
                bundles=_bundles(slot),
                can_roll_back=slot.previous is not None,
            )
            for name, slot in deployments.slots.items()
        ],
        data=[model_object(slot.current) for slot in deployments.slots.values()],
    )


def model_object(deployment: Deployment) -> ModelObject:
    """One model, in the form of OpenAI's API."""
    created = datetime.fromisoformat(deployment.engine.manifest.created)
    return ModelObject(id=deployment.name, created=int(created.timestamp()))


def _bundles(slot: Slot) -> list[BundleReport]:
    current = _bundle(slot.current, "current", None)
    if slot.canary is None:
        return [current]
    return [current, _bundle(slot.canary, "canary", slot.canary_percent)]


def _bundle(
    deployment: Deployment, role: Literal["current", "canary"], percent: float | None
) -> BundleReport:
    return BundleReport(
        bundle_id=deployment.bundle_id,
        created=deployment.engine.manifest.created,
        role=role,
        canary_percent=percent,
    )


def _adaptive_effort(deployment: Deployment) -> AdaptiveEffortReport | None:
    if deployment.effort is None:
        return None
    steps, steps_down = deployment.effort.steps, deployment.effort_steps_down()
    return AdaptiveEffortReport(ceiling=steps[-1 - steps_down], steps_down=steps_down, steps=steps)


def _label_rules(engine: Engine) -> LabelRulesReport | None:
    if engine.rules is None:
        return None
    return LabelRulesReport(open=engine.rules.n_open, labels=engine.catalogue.n_rows)


def info_report(serving: Serving, deployment: Deployment) -> InfoResponse:
    """A bundle, its measured quality, and the limits in force."""
    engine, settings = deployment.engine, serving.settings
    manifest = engine.manifest
    return InfoResponse(
        name=manifest.name,
        models=list(serving.deployments.slots),
        bundle_id=manifest.bundle_id,
        created=manifest.created,
        version=__version__,
        n_labels=manifest.labels.n_labels,
        dim=manifest.encoder.dim,
        index_kind=manifest.index.kind,
        score_kind=engine.calibration.score_kind,  # type: ignore[arg-type]
        default_k=manifest.defaults.k,
        default_effort=manifest.defaults.effort,
        operating_points=manifest.operating_points,
        quality=manifest.quality,
        parity=manifest.parity,
        calibration=manifest.calibration,
        memory=manifest.memory,
        rerank=manifest.rerank,
        item_filter=manifest.filter,
        label_rules=_label_rules(engine),
        adaptive_effort=_adaptive_effort(deployment),
        fields=manifest.tokenizer.fields,
        encoder=EncoderReport(
            variant=engine.variant,
            default=manifest.encoder.served,
            available=list(manifest.encoder.variants),
            measured=manifest.encoder.measured,
        ),
        device=DeviceReport(requested=settings.device, active=engine.encoder.device),
        lanes=deployment.batcher.limits.lanes,
        limits=LimitsReport(
            max_queries=settings.max_queries,
            max_text_chars=settings.max_text_chars,
            max_tokens=manifest.tokenizer.max_tokens,
            max_k=settings.max_k,
            max_filter_ids=settings.max_filter_ids,
            max_body_bytes=settings.max_body_bytes,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            bulk_queue_share=settings.bulk_queue_share,
            request_timeout_ms=settings.request_timeout_ms,
            request_timeout_max_ms=settings.request_timeout_max_ms,
        ),
    )

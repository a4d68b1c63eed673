"""POST /v1/embed: texts become vectors, by the same queue and in the same batches as answers."""

from collections.abc import Sequence
from typing import Any

from service.api.endpoint import Endpoint, as_json, as_list
from service.core.batching.job import Answer
from service.core.types import Query
from service.gate.bodies import validate
from service.gate.exchange import Exchange
from service.gate.problems import Headers
from service.serving.deployment import Deployment
from service.serving.request_models import EmbedRequest


class Embed(Endpoint[EmbedRequest]):
    """POST /v1/embed."""

    texts = "input"

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[EmbedRequest, list[Query]]:
        """One query for each text."""
        request = validate(deployment.request_models.embed, value)
        exchange.queries = as_list(request.input)
        return request, encode_only(deployment, exchange.queries)

    async def write(
        self, deployment: Deployment, request: EmbedRequest, answer: Answer
    ) -> tuple[Headers, bytes]:
        """The vectors, in the order of the texts."""
        return as_json(
            {
                "embeddings": [item.embedding for item in answer.predictions],
                "dim": deployment.engine.manifest.encoder.dim,
                "truncated": [item.truncated for item in answer.predictions],
                "bundle_id": deployment.bundle_id,
            }
        )


def encode_only(deployment: Deployment, texts: Sequence[str]) -> list[Query]:
    """Queries that are encoded and not searched."""
    effort = deployment.engine.manifest.defaults.effort
    return [Query(text, 0, effort, None, effort_strict=True) for text in texts]

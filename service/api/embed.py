"""POST /v1/embed: texts become vectors, by the same queue and in the same batches as answers."""

from collections.abc import Sequence
from typing import Any

from service.api.endpoint import Endpoint, as_json, as_list, as_query, as_shown
from service.core.batching.job import Answer
from service.core.types import Query
from service.gate.bodies import validate
from service.gate.exchange import Exchange
from service.gate.problems import Headers
from service.serving.deployment import Deployment
from service.serving.query_texts import HistoryRequest
from service.serving.request_models import EmbedRequest


class Embed(Endpoint[EmbedRequest]):
    """POST /v1/embed."""

    texts = "input"

    def queries(
        self, exchange: Exchange, deployment: Deployment, value: Any
    ) -> tuple[EmbedRequest, list[Query]]:
        """One query for each text."""
        request = validate(deployment.request_models.embed, value)
        texts = as_list(request.input)
        exchange.queries = as_shown(texts)
        return request, encode_only(deployment, texts)

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


def encode_only(deployment: Deployment, texts: Sequence[str | HistoryRequest]) -> list[Query]:
    """Queries that are encoded and not searched."""
    effort = deployment.engine.manifest.defaults.effort
    return [as_query(text, k=0, effort=effort, effort_strict=True) for text in texts]

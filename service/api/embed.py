"""POST /v1/embed: texts to vectors, by the same admission, batches and deadlines as answers."""

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from service.api.recommend import check_room, chosen, server_timing
from service.core.types import Query
from service.gate.bodies import check_json, parse, read_body, validate
from service.gate.exchange import EXCHANGE, Exchange
from service.gate.watch import Watch
from service.serving.serving import Serving


class Embed:
    """The endpoint of /v1/embed, bound to what it answers from."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer POST /v1/embed."""
        exchange: Exchange = scope[EXCHANGE]
        serving = self._serving
        check_json(exchange.headers.get(b"content-type", b""))
        check_room(serving, exchange)
        with Watch(receive, exchange.left_s, exchange.reply) as watch:
            raw = parse(await read_body(receive))
            deployment = chosen(serving, exchange, raw)
            request = validate(deployment.request_models.embed, raw)
            texts = [request.input] if isinstance(request.input, str) else request.input
            exchange.queries = texts
            manifest = deployment.engine.manifest
            queries = [Query(text, 0, manifest.defaults.effort, None, True) for text in texts]
            answer = exchange.answer = await watch.answer(
                deployment.batcher.submit(queries, exchange.deadline_s, exchange.bulk)
            )
        content: dict[str, Any] = {
            "embeddings": [item.embedding for item in answer.predictions],
            "dim": manifest.encoder.dim,
            "truncated": [item.truncated for item in answer.predictions],
            "bundle_id": deployment.bundle_id,
        }
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"server-timing", server_timing(answer, serving.clock() - exchange.started_s)),
        ]
        await exchange.respond(send, 200, headers, body)

"""A text that leaves no token is refused by every route, whatever characters it is made of."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.bundle.manifest import MANIFEST
from tests.support.live import live_service
from tests.support.tiny_bundle import seal

INVISIBLE = (
    "\u00ad",
    "\u00ad \u00ad" * 9,
    "\u200d\u200c",
    "\u2060\ufeff",
    "\u202e\u200f",
    "\ufe0f",
    "\u0301",
    "\U000e0061\U000e007f",
)
VISIBLE = ("whale", "\u00adwh\u00adale", "zzz", "\U0001f40b", "\u2603\ufe0f", "!", "\u05d0")
ADMIN = {"Authorization": "Bearer admin"}


@pytest.fixture(scope="module", params=["special tokens", "no special tokens"])
def client(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A service whose tokenizer cleans texts as BERT's does, and adds a token to each or none."""
    bundle = tmp_path_factory.mktemp("bundles") / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    path = bundle / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    options = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": True}
    tokenizer["normalizer"] = {"type": "BertNormalizer", "lowercase": True} | options
    manifest = json.loads((bundle / MANIFEST).read_text())
    if request.param == "no special tokens":
        tokenizer["post_processor"] = None
        manifest["golden"] = []
    path.write_text(json.dumps(tokenizer))
    seal(bundle, manifest)
    state = tmp_path_factory.mktemp("state")
    with (
        live_service(bundle, admin_key="admin", state_dir=state) as url,
        httpx.Client(base_url=url, headers=ADMIN, timeout=30) as client,
    ):
        yield client


def tensor(*texts: str) -> dict[str, Any]:
    datum = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    return {"inputs": [datum]}


ROUTES = {
    "query": ("/v1/recommend", lambda text: {"query": text}),
    "query[1]": ("/v1/recommend", lambda text: {"query": ["whale", text]}),
    "q": ("/v1/recommend", None),
    "input": ("/v1/embed", lambda text: {"input": text}),
    "input[0]": ("/v1/embeddings", lambda text: {"model": "tiny", "input": [text, "whale"]}),
    "text": ("/v2/models/tiny/infer", tensor),
    "text[1]": ("/v2/models/tiny/infer", lambda text: tensor("whale", text)),
}


def ask(client: httpx.Client, field: str, text: str) -> httpx.Response:
    path, body = ROUTES[field]
    if body is None:
        return client.get(path, params={"q": text})
    return client.post(path, json=body(text))


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
@pytest.mark.parametrize("field", ROUTES)
def test_a_text_without_a_token_is_refused(client: httpx.Client, field: str, text: str) -> None:
    refused = ask(client, field, text)
    foreign = ROUTES[field][0] in ("/v1/embeddings", "/v2/models/tiny/infer")
    assert refused.status_code == (400 if foreign else 422), refused.text
    assert f"{field} holds no visible character: send some text" in refused.text


@pytest.mark.parametrize("text", VISIBLE, ids=ascii)
@pytest.mark.parametrize("field", ROUTES)
def test_a_text_with_a_token_is_answered(client: httpx.Client, field: str, text: str) -> None:
    assert ask(client, field, text).status_code == 200


@pytest.mark.parametrize("text", INVISIBLE, ids=ascii)
def test_no_label_gets_a_text_without_a_token(client: httpx.Client, text: str) -> None:
    label = {"id": "new", "text": "whale"}
    for method, path, body in (
        ("POST", "/v1/labels", {"labels": [label, {"id": "other", "text": text}]}),
        ("PUT", "/v1/labels/L003", {"text": text}),
        ("POST", "/v1/label-changes", {"changes": [{"op": "update", "id": "L003", "text": text}]}),
    ):
        refused = client.request(method, path, json=body)
        assert refused.status_code == 422, (path, refused.text)
        assert "holds no visible character" in refused.json()["detail"]
    assert client.get("/v1/labels/new").status_code == 404


def test_who_sends_such_a_text_harms_nobody_else(client: httpx.Client) -> None:
    alone = client.post("/v1/recommend", json={"query": "white whale"}).json()["results"]
    assert ask(client, "query[1]", "\u00ad").status_code == 422
    assert client.post("/v1/recommend", json={"query": "white whale"}).json()["results"] == alone

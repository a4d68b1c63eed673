"""The Open Inference Protocol, spoken by Triton's own client to a real service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from service.api.oip.tensors import OutputTensor, serialise
from service.bundle.manifest import MANIFEST
from tests.support.live import live_service
from tests.support.tiny_bundle import DIM, N_LABELS

TEXTS = ["the white whale", "a history of rome"]


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with live_service(tiny_bundle, max_queries=4, max_text_chars=100) as address:
        yield address


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Any:
    return json.loads((tiny_bundle / MANIFEST).read_text())


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as found:
        yield found


def text_input(texts: list[str], shape: list[int] | None = None, binary: bool = True) -> Any:
    values = np.array(texts, dtype=np.object_).reshape(shape or [len(texts)])
    tensor = triton.InferInput("text", list(values.shape), "BYTES")
    return tensor.set_data_from_numpy(values, binary_data=binary)


def k_input(k: int) -> Any:
    return triton.InferInput("k", [1], "INT32").set_data_from_numpy(np.array([k], np.int32))


def recommended(url: str, k: int) -> list[Any]:
    answer = httpx.post(f"{url}/v1/recommend", json={"query": TEXTS, "k": k, "include": ["text"]})
    return [result["labels"] for result in answer.json()["results"]]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("binary", [True, False])
def test_answer_is_that_of_recommend(
    client: Any, url: str, manifest: Any, shape: list[int], binary: bool
) -> None:
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("label_id", "label_text", "score", "embedding")
    ]
    answer = client.infer(
        manifest["name"],
        [text_input(TEXTS, shape, binary), k_input(3)],
        outputs=outputs,
        request_id="seven",
    )
    expected = recommended(url, 3)
    ids, texts = answer.as_numpy("label_id"), answer.as_numpy("label_text")
    as_text = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in ids.tolist()]
    assert as_text == [[label["id"] for label in row] for row in expected]
    as_text = [[v.decode() if isinstance(v, bytes) else v for v in row] for row in texts.tolist()]
    assert as_text == [[label["text"] for label in row] for row in expected]
    scores = [[label["score"] for label in row] for row in expected]
    assert answer.as_numpy("score") == pytest.approx(np.array(scores), abs=1e-5)
    assert answer.as_numpy("embedding").shape == (2, DIM)
    assert answer.as_numpy("embedding").dtype == np.float32
    told = answer.get_response()
    assert (told["id"], told["model_name"]) == ("seven", manifest["name"])
    assert told["model_version"] == manifest["bundle_id"][:12]


def test_without_outputs_named_all_come_with_the_bundles_k(client: Any, manifest: Any) -> None:
    answer = client.infer(manifest["name"], [text_input(TEXTS)])
    assert answer.as_numpy("label_id").shape == (2, manifest["defaults"]["k"])
    assert answer.as_numpy("embedding").shape == (2, DIM)


def test_k_effort_and_priority_may_be_parameters(client: Any, manifest: Any) -> None:
    answer = client.infer(
        manifest["name"],
        [text_input(TEXTS)],
        priority=2,
        parameters={"k": 2, "effort": "exact"},
    )
    assert answer.as_numpy("score").shape == (2, 2)


def test_embedding_alone_searches_nothing(client: Any, url: str, manifest: Any) -> None:
    output = triton.InferRequestedOutput("embedding")
    answer = client.infer(manifest["name"], [text_input(TEXTS)], outputs=[output])
    shown = httpx.post(
        f"{url}/v1/recommend", json={"query": TEXTS, "k": 1, "include": ["embedding"]}
    ).json()
    expected = [result["embedding"] for result in shown["results"]]
    assert answer.as_numpy("embedding") == pytest.approx(np.array(expected), abs=1e-6)
    assert answer.as_numpy("label_id") is None


def test_more_labels_than_there_are_come_as_fewer(client: Any, manifest: Any) -> None:
    answer = client.infer(manifest["name"], [text_input(TEXTS), k_input(100)])
    assert answer.as_numpy("score").shape == (2, N_LABELS)


def test_server_and_model_describe_themselves(client: Any, manifest: Any) -> None:
    name, version = manifest["name"], manifest["bundle_id"][:12]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, version)
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "astrolabe"
    described = client.get_model_metadata(name)
    assert described == client.get_model_metadata(name, version)
    assert described["versions"] == [version]
    assert [tensor["name"] for tensor in described["inputs"]] == ["text", "k"]
    assert described["outputs"][3]["shape"] == [-1, DIM]
    assert client.get_model_config(name)["input"][0]["data_type"] == "TYPE_STRING"
    [entry] = client.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == (name, version, "READY")


def wrong_dtype() -> Any:
    return triton.InferInput("text", [1], "FP32").set_data_from_numpy(np.ones(1, np.float32))


@pytest.mark.parametrize(
    ("inputs", "options", "status", "says"),
    [
        ([text_input([])], {}, "400", "holds no text"),
        ([text_input(["a", " "])], {}, "400", "text[1] holds no visible character"),
        ([text_input(["a"] * 5)], {}, "413", "the limit is 4"),
        ([text_input(["x" * 101])], {}, "413", "the limit is 100"),
        ([text_input(TEXTS, [1, 2])], {}, "400", "must be [n] or [n, 1]"),
        ([wrong_dtype()], {}, "400", "datatype 'FP32'"),
        ([k_input(3)], {}, "400", "input text is missing"),
        ([text_input(TEXTS), k_input(0)], {}, "400", "k must be"),
        ([text_input(TEXTS), text_input(TEXTS)], {}, "400", "more than once"),
        ([text_input(TEXTS)], {"model_version": "9"}, "404", "no version '9'"),
        ([text_input(TEXTS)], {"parameters": {"effort": "magic"}}, "400", "effort must be"),
        ([text_input(TEXTS)], {"sequence_id": 3}, "400", "sequence_id"),
        (
            [text_input(TEXTS)],
            {"outputs": [triton.InferRequestedOutput("logits")]},
            "400",
            "no output 'logits'",
        ),
        (
            [text_input(TEXTS)],
            {"outputs": [triton.InferRequestedOutput("score", class_count=3)]},
            "400",
            "classification",
        ),
        (
            [text_input(TEXTS)],
            {"request_compression_algorithm": "gzip"},
            "415",
            "request_compression_algorithm=None",
        ),
    ],
)
def test_client_is_told_what_is_wrong(
    client: Any, manifest: Any, inputs: Any, options: Any, status: str, says: str
) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        client.infer(manifest["name"], inputs, **options)
    assert refusal.value.status() == status
    assert says in refusal.value.message()


def test_unknown_model_is_404(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="no model 'nobody'"):
        client.infer("nobody", [text_input(TEXTS)])


END_OF_JSON = -1
HEAD = b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","parameters":%s}]}'


@pytest.mark.parametrize(
    ("body", "header_length", "says"),
    [
        (b"{", None, "not JSON"),
        (b"{}", None, "inputs is missing"),
        (HEAD % b'{"binary_data_size":9}' + b"\x05\0\0\0ab", 80, "not JSON"),
        (HEAD % b'{"binary_data_size":9}' + b"abc", None, "not JSON"),
        (HEAD % b'{"binary_data_size":9}' + b"abc", END_OF_JSON, "3 bytes are left"),
        (HEAD % b'{"binary_data_size":2}' + b"abc", END_OF_JSON, "1 bytes after the JSON"),
        (HEAD % b'{"binary_data_size":2}' + b"ab", END_OF_JSON, "ends inside element 0"),
        (HEAD % b'{"binary_data_size":5}' + b"\x05\0\0\0a", END_OF_JSON, "ends inside element 0"),
        (HEAD % b'{"binary_data_size":5}' + b"\x01\0\0\0\xff", END_OF_JSON, "not UTF-8"),
        (HEAD % b"{}", None, "neither data nor binary_data_size"),
        (HEAD % b"{}", 9999, "Inference-Header-Content-Length"),
        (HEAD % b'{"shared_memory_region":"x"}', None, "shared_memory_region"),
    ],
)
def test_broken_body_is_400_in_the_protocols_form(
    url: str, manifest: Any, body: bytes, header_length: int | None, says: str
) -> None:
    if header_length == END_OF_JSON:
        header_length = body.index(b"}]}") + 3
    headers = {} if header_length is None else {"Inference-Header-Content-Length": header_length}
    answer = httpx.post(
        f"{url}/v2/models/{manifest['name']}/infer",
        content=body,
        headers={name: str(value) for name, value in headers.items()},
    )
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/repository/models/x/load"])
def test_routes_that_are_not_offered_say_so_in_the_protocols_form(url: str, path: str) -> None:
    answer = httpx.post(url + path)
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_rows_of_unlike_length_are_filled_up_with_null_in_json() -> None:
    scores = np.array([[0.5, np.nan]], np.float32)
    body, header_length = serialise({}, [OutputTensor("score", scores)], [False])
    assert header_length is None
    assert json.loads(body)["outputs"][0]["data"] == [0.5, None]

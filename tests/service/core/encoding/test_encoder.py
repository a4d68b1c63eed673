from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from service.core.encoding.encoder import OnnxEncoder
from service.core.encoding.tokenizer import Tokenizer, pad
from service.core.types import TokenBatch
from service.errors import BundleMismatch, DeviceUnavailable, ManifestInvalid
from tests.support.tiny_bundle import DIM, MAX_TOKENS

TEXTS = ["whale", "the white whale sea ship", "", "rome empire history of war", "moon"]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> OnnxEncoder:
    return OnnxEncoder(tiny_bundle / "encoder.onnx", "cpu")


def write_graph(path: Path, inputs: list[str], shape: list[int | str], scale: float = 1.0) -> Path:
    """A graph that multiplies the ids by a number, for encoders that are wrong on purpose."""
    nodes = [
        helper.make_node("Cast", [inputs[0]], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["out"]),
    ]
    entries = [helper.make_tensor_value_info(i, TensorProto.INT64, ["n", "length"]) for i in inputs]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    constant = helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])
    graph = helper.make_graph(nodes, "wrong", entries, [output], [constant])
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )
    return path


def test_batched_equals_one_by_one(encoder: OnnxEncoder, tiny_bundle: Path) -> None:
    tokenizer = Tokenizer(tiny_bundle / "tokenizer.json", MAX_TOKENS)
    together = encoder.encode(pad(tokenizer.tokenize(TEXTS)))
    apart = [encoder.encode(pad(tokenizer.tokenize([text])))[0] for text in TEXTS]
    assert together.shape == (len(TEXTS), DIM)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_onnx_runtime_never_falls_back_by_itself(encoder: OnnxEncoder) -> None:
    # it would go on on the CPU after one failed run on a GPU, with a line on standard output
    assert not encoder._session._enable_fallback


def test_device_in_use_is_reported(encoder: OnnxEncoder) -> None:
    assert (encoder.device, encoder.dim) == ("cpu", DIM)


def test_cuda_asked_for_on_cpu_only_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceUnavailable, match="cuda was asked for"):
        OnnxEncoder(tiny_bundle / "encoder.onnx", "cuda")


def test_provider_that_exists_but_cannot_start_is_refused_not_replaced(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the GPU build does where there is no driver: it lists CUDA, and falls back silently
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers, **_: real(
            path, options, providers=["CPUExecutionProvider"]
        ),
    )
    with pytest.raises(DeviceUnavailable, match="could not start CUDAExecutionProvider"):
        OnnxEncoder(tiny_bundle / "encoder.onnx", "cuda")


def test_auto_falls_back_to_the_cpu_aloud(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession

    def without_driver(
        path: str, options: object, providers: list[tuple[str, object]], **_: object
    ) -> object:
        if providers[0][0].startswith("CUDA"):
            raise RuntimeError("no driver")
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_driver)
    with caplog.at_level("INFO"):
        assert OnnxEncoder(tiny_bundle / "encoder.onnx", "auto").device == "cpu"
    assert "no driver" in caplog.text
    assert {entry.levelname for entry in caplog.records} == {"INFO"}


def test_file_that_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(ManifestInvalid, match=r"encoder\.onnx"):
        OnnxEncoder(tmp_path / "encoder.onnx", "cpu")


def test_graph_with_other_inputs_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "e.onnx", ["tokens"], ["n", 4])
    with pytest.raises(BundleMismatch, match=r"e\.onnx has inputs \['tokens'\]"):
        OnnxEncoder(path, "cpu")


def test_graph_without_a_fixed_width_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "e.onnx", ["input_ids", "attention_mask"], ["n", "dim"])
    with pytest.raises(BundleMismatch, match=r"e\.onnx has output shape"):
        OnnxEncoder(path, "cpu")


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    inputs = ["input_ids", "attention_mask"]
    path = write_graph(tmp_path / "e.onnx", inputs, ["n", 3], scale=float("inf"))
    onnx.load(path)
    ones = np.ones((1, 3), np.int64)
    with pytest.raises(RuntimeError, match="not finite"):
        OnnxEncoder(path, "cpu").encode(TokenBatch(ones, ones, np.zeros(1, np.bool_)))


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_computes(encoder: OnnxEncoder, tiny_bundle: Path) -> None:
    try:
        on_gpu = OnnxEncoder(tiny_bundle / "encoder.onnx", "cuda")
    except DeviceUnavailable as exc:
        pytest.skip(f"no CUDA device: {exc.detail}")
    assert on_gpu.device == "cuda"
    batch = pad(Tokenizer(tiny_bundle / "tokenizer.json", MAX_TOKENS).tokenize(["white whale"]))
    assert np.allclose(on_gpu.encode(batch), encoder.encode(batch), atol=1e-3)

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.core.encoding.encoder import OnnxEncoder
from service.core.encoding.onnx_check import MAX_DEPTH, MAX_MESSAGES, check_onnx
from service.errors import ManifestInvalid


@pytest.fixture
def model(tiny_bundle: Path) -> onnx.ModelProto:
    """The tiny encoder, for a test to spoil."""
    return onnx.load(tiny_bundle / "encoder.onnx")


def refused(folder: Path, model: onnx.ModelProto | bytes, words: str) -> None:
    path = folder / "encoder.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(ManifestInvalid, match=r"encoder\.onnx is not a graph that may") as refusal:
        check_onnx(path)
    assert words in refusal.value.detail
    with pytest.raises(ManifestInvalid):
        OnnxEncoder(path, "cpu")


def outside(tensor: TensorProto) -> TensorProto:
    """The tensor, with its bytes in a file of the attacker's choice."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return tensor


def weights() -> TensorProto:
    return numpy_helper.from_array(np.ones(4, np.float32), "w")


def with_node(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    model.graph.node.append(node)
    return model


def as_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(outside(weights()))


def as_sparse_initializer(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(outside(weights()))


def as_attribute(model: onnx.ModelProto) -> None:
    with_node(model, helper.make_node("Constant", [], ["c"], value=outside(weights())))


def as_one_of_many(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(helper.make_attribute("many", [weights(), outside(weights())]))
    with_node(model, node)


def in_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [], [outside(weights())])
    with_node(model, helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=outside(weights()))
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "f", [], ["c"], [node], opset))


def by_location_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def by_entry_alone(model: onnx.ModelProto) -> None:
    tensor = outside(weights())
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


@pytest.mark.parametrize(
    "hide",
    [
        as_initializer,
        as_sparse_initializer,
        as_attribute,
        as_one_of_many,
        in_a_branch,
        in_a_function,
        by_location_alone,
        by_entry_alone,
    ],
)
def test_tensors_in_other_files_are_refused_wherever_they_stand(
    model: onnx.ModelProto, tmp_path: Path, hide: Callable[[onnx.ModelProto], None]
) -> None:
    hide(model)
    refused(tmp_path, model, "a tensor lies in another file")


def test_operators_of_other_domains_are_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    # com.microsoft has one that loads a compiled context from a path
    node = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context="/x")
    refused(tmp_path, with_node(model, node), "'com.microsoft'")


def test_domains_are_refused_where_they_are_declared(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    model.opset_import.append(helper.make_opsetid("evil.custom", 1))
    refused(tmp_path, model, "'evil.custom'")


@pytest.mark.parametrize("operator", ["Loop", "Scan"])
def test_loops_are_refused(model: onnx.ModelProto, tmp_path: Path, operator: str) -> None:
    body = helper.make_graph([], "body", [], [])
    refused(tmp_path, with_node(model, helper.make_node(operator, [], ["y"], body=body)), operator)


def test_a_training_graph_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.training_info.add()
    refused(tmp_path, model, "training")


def test_nesting_is_bounded(model: onnx.ModelProto, tmp_path: Path) -> None:
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(MAX_DEPTH):
        node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "outer", [], [])
    model.graph.node.extend(inner.node)
    refused(tmp_path, model, f"over {MAX_DEPTH} deep")


def test_the_number_of_parts_is_bounded(tmp_path: Path) -> None:
    node = b"\x0a\x00"  # field 1 of a graph, empty
    graph = node * (MAX_MESSAGES + 1)
    refused(tmp_path, b"\x3a" + varint(len(graph)) + graph, f"over {MAX_MESSAGES} parts")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph of four gigabytes
        b"\x3a" + b"\xff" * 20,  # a length without an end
        b"\x3b\x3c",  # a group, which no writer of onnx makes
        b"\x00\x00",  # field 0
        b"\x38\x01",  # the graph as a number
        b"\xba\x80\x80\x80\x10\x00",  # field 7 to whoever cuts its number to 32 bits
        b"ORTM" * 64,
    ],
)
def test_what_is_no_protocol_buffer_of_a_model_is_refused(tmp_path: Path, raw: bytes) -> None:
    refused(tmp_path, raw, "encoder.onnx")


def test_the_other_format_of_onnx_runtime_is_not_guessed_from_a_name(
    model: onnx.ModelProto, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.ort"
    path.write_bytes(model.SerializeToString())
    assert OnnxEncoder(path, "cpu").device == "cpu"


def test_a_sound_graph_passes_with_its_weights_unread(tiny_bundle: Path) -> None:
    check_onnx(tiny_bundle / "encoder.onnx")

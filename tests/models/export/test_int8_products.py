"""The integer product gives the exact one back but for rounding, token by token."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.data.tokens import TokenizedTexts
from models.export import int8_products
from models.export.export_onnx import trace
from models.export.graph_editor import GraphEditor
from models.export.int8_products import Int8Products, largest_by_channel, loud_channels, quantised
from tests.support.tiny_job import WIDTH, tiny_transformer

TEXTS = TokenizedTexts(
    np.random.default_rng(3).integers(2, 400, 600).astype(np.int32), np.arange(0, 601, 10), 0
)
LOUD = [3, 17]


@pytest.fixture(scope="module")
def traced():
    return trace(tiny_transformer())


@pytest.fixture(scope="module")
def states():
    """Two texts of five tokens; two channels are far larger than the others, as in real models."""
    values = np.random.default_rng(1).normal(0.3, 1.0, (2, 5, WIDTH)).astype(np.float32)
    values[..., LOUD] *= 30.0
    return values


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(2).standard_normal((WIDTH, 7)).astype(np.float32)


def in_integers(states, matrix, monkeypatch, sample=None):
    """The product of states and matrix, through the nodes that stand in for it."""
    seen = states if sample is None else sample
    largest = {"states": np.abs(seen).max(axis=(0, 1))}
    monkeypatch.setattr(int8_products, "largest_by_channel", lambda *_: largest)
    product = helper.make_node("MatMul", ["states", "matrix"], ["product"])
    product.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'backbone', 'linear']")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "length", width])
        for name, width in (("states", WIDTH), ("product", matrix.shape[1]))
    ]
    stored = [numpy_helper.from_array(matrix, "matrix")]
    graph = helper.make_graph([product], "one", values[:1], values[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    editor = GraphEditor(model)
    editor.rewrite(Int8Products(model, TEXTS))
    editor.close()
    assert "MatMulInteger" in [node.op_type for node in model.graph.node]
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"states": states})[0]


def test_the_product_is_right_to_about_a_percent(states, matrix, monkeypatch):
    exact = states @ matrix
    error = in_integers(states, matrix, monkeypatch) - exact
    assert np.abs(error).max() < 0.01 * np.abs(exact).max()


def test_keeping_loud_channels_exact_cuts_the_error_to_a_fifth(states, matrix, monkeypatch):
    exact = states @ matrix
    mixed = np.abs(in_integers(states, matrix, monkeypatch) - exact).mean()
    monkeypatch.setattr(int8_products, "MOST_LOUD", 0)
    assert mixed < np.abs(in_integers(states, matrix, monkeypatch) - exact).mean() / 5


def test_a_token_does_not_change_with_its_company(states, matrix, monkeypatch):
    together = in_integers(states, matrix, monkeypatch)
    other = states.copy()
    other[0, 0] *= 1000.0
    changed = in_integers(other, matrix, monkeypatch, sample=states)
    assert np.array_equal(together[0, 1:], changed[0, 1:])
    assert np.array_equal(together[1], changed[1])


def test_tokens_of_equal_values_and_of_zeros_come_out_right(matrix, monkeypatch):
    states = np.zeros((1, 2, WIDTH), np.float32)
    states[0, 1] = 2.5
    product = in_integers(states, matrix, monkeypatch)
    assert not product[0, 0].any()
    assert np.allclose(product[0, 1], states[0, 1] @ matrix, atol=0.2)


def test_every_product_of_the_backbone_is_looked_at_on_the_whole_sample(traced):
    whole = largest_by_channel(traced, TEXTS)
    assert sorted(map(len, whole.values())) == [WIDTH] * 6 + [2 * WIDTH] * 2  # two layers
    parts = [largest_by_channel(traced, TEXTS.take(rows)) for rows in np.split(np.arange(60), 2)]
    for name, largest in whole.items():
        assert np.allclose(largest, np.maximum(*(part[name] for part in parts)), rtol=1e-5)


def test_channels_of_like_size_are_never_loud():
    assert loud_channels(np.ones(50, np.float32)).tolist() == []


def test_few_channels_are_loud_however_many_are_large():
    largest = np.ones(50, np.float32)
    largest[:20] = 9.0
    assert len(loud_channels(largest)) == int8_products.MOST_LOUD


def test_scales_give_the_values_back_to_half_a_step():
    values = np.random.default_rng(1).standard_normal((5, 300)).astype(np.float32)
    levels, scales = quantised(values, axis=1)
    assert levels.dtype == np.int8
    assert scales.shape == (5, 1)
    assert (np.abs(levels * scales - values) <= scales / 2 + 1e-7).all()


def test_a_row_of_zeros_stays_one():
    levels, scales = quantised(np.zeros((2, 4), np.float32), axis=1)
    assert not (levels * scales).any()
    assert np.isfinite(scales).all()

"""Every encoder in every precision computes what torch computes, for any batch and length."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from models.data.tokens import TokenizedTexts
from models.encoders.bag import BagEncoder
from models.encoders.build import transformer_of
from models.encoders.transformer import BagTransformer
from models.export.export_onnx import encode_with, parity, trace
from models.export.precision import at_precision
from service.core.encoding.encoder import OnnxEncoder
from tests.support.tiny_job import one_word_texts, tiny_transformer

VOCABULARY = 400
SAMPLE = TokenizedTexts(np.arange(2, 42, dtype=np.int32), np.arange(0, 41, 8), 0)
VIEWS = "bag+transformer of two views"
KINDS = ("bag", "transformer", "bag+transformer", VIEWS)
TOLERANCES = {"fp32": 1e-5, "fp16": 3e-3, "int8": 4e-2}


def make_encoder(kind):
    torch.manual_seed(0)
    fields = 2 if kind == VIEWS else 1
    bag = BagEncoder(torch.randn(VOCABULARY, 16), pair_buckets=64, fields=fields)
    torch.nn.init.normal_(bag.pairs.weight, std=0.3)
    if kind == "bag":
        return bag
    transformer = tiny_transformer()
    transformer.fields = fields
    torch.nn.init.normal_(transformer.projection.weight)
    return transformer if kind == "transformer" else BagTransformer(bag, transformer)


@cache
def encoder_and_trace(kind):
    """Kept, because pytest makes a fixture anew each time that its parameter comes up again."""
    encoder = make_encoder(kind)
    return encoder, trace(encoder)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def encoder(kind):
    return encoder_and_trace(kind)[0]


@pytest.fixture(scope="module")
def traced(kind):
    return encoder_and_trace(kind)[1]


@pytest.fixture(scope="module", params=TOLERANCES)
def variant(request, traced, tmp_path_factory):
    """A precision, its graph and the opened file."""
    model = at_precision(traced, request.param, SAMPLE)
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    onnx.save(model, path)
    return SimpleNamespace(
        precision=request.param, model=model, path=path, encoder=OnnxEncoder(path, "cpu")
    )


def batch_of(n, length, kind):
    """Texts of at least two tokens, the first two of them a title where there are two views."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (n, length), generator=generator)
    lengths = torch.randint(2, length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    if kind == VIEWS:
        mask *= 1 + (torch.arange(length) >= 2).long()
    return SimpleNamespace(ids=ids.numpy(), mask=mask.numpy())


@pytest.mark.parametrize(("n", "length"), [(1, 2), (1, 9), (5, 3), (40, 64)])
def test_onnx_matches_torch_at_every_shape(kind, encoder, variant, n, length):
    batch = batch_of(n, length, kind)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).numpy()
    rows = variant.encoder.encode(batch)
    assert rows.dtype == np.float32
    assert np.abs(rows - expected).max() < TOLERANCES[variant.precision]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


def test_a_row_does_not_depend_on_padding_or_on_its_batch(kind, variant):
    batch = batch_of(6, 12, kind)
    together = variant.encoder.encode(batch)
    for i in range(len(batch.ids)):
        row, length = slice(i, i + 1), int(np.count_nonzero(batch.mask[i]))
        alone = SimpleNamespace(ids=batch.ids[row, :length], mask=batch.mask[row, :length])
        assert np.abs(variant.encoder.encode(alone)[0] - together[i]).max() < 1e-5


def test_lower_precision_is_smaller(variant, traced):
    share = variant.path.stat().st_size / at_precision(traced, "fp32", SAMPLE).ByteSize()
    assert share <= {"fp32": 1.0, "fp16": 0.7, "int8": 0.6}[variant.precision]


def test_int8_multiplies_the_layers_in_integers_and_nothing_else(encoder, traced):
    kinds = [node.op_type for node in at_precision(traced, "int8", SAMPLE).graph.node]
    layers = 0 if isinstance(encoder, BagEncoder) else 2
    assert kinds.count("MatMulInteger") == 6 * layers  # query, key, value, output, up, down
    assert kinds.count("MatMul") == (6 + 2) * layers  # what is exact of these; attention itself
    assert kinds.count("Gemm") == min(1, layers)  # the projection


def test_no_graph_names_a_path_of_this_machine(variant):
    found = variant.path.read_bytes()
    assert b"site-packages" not in found
    assert b".py" not in found


def test_tracing_leaves_the_encoder_as_it_was(encoder, traced):
    transformer = transformer_of(encoder)
    assert transformer is None or transformer.backbone.config._attn_implementation == "sdpa"


def test_parity_reports_agreement_and_notices_a_wrong_export(encoder, variant):
    texts = one_word_texts(6)
    vectors = np.random.default_rng(1).standard_normal((30, encoder.dim), np.float32)
    rows = encode_with(variant.encoder, texts)

    def first(embeddings):
        return (embeddings @ vectors.T).argmax(axis=1, keepdims=True)

    good = parity(rows, rows, first)
    assert (good.max_abs_diff, good.top1_agreement) == (0.0, 1.0)
    assert good.n_queries == len(texts)
    assert parity(rows, -rows, first).top1_agreement < 0.5

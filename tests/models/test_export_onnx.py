"""The exported graph computes what torch computes, for any batch and length."""

import numpy as np
import pytest
import torch

from models.encoders.bag import BagEncoder
from models.export_onnx import encode_with, export, parity
from models.methods.astra import Servable
from service.core.encoder import OnnxEncoder
from tests.models.methods.test_astra import label_texts  # noqa: F401


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    built = BagEncoder(torch.randn(50, 16), pair_buckets=64)
    torch.nn.init.normal_(built.pairs.weight, std=0.3)
    return built


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    export(encoder, path)
    return OnnxEncoder(path, "cpu")


@pytest.mark.parametrize(("n", "length"), [(1, 2), (1, 9), (5, 3), (40, 64)])
def test_onnx_matches_torch_at_every_shape(encoder, exported, n, length):
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(0, 50, (n, length), generator=generator)
    lengths = torch.randint(2, length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    with torch.no_grad():
        expected = encoder(ids, mask).numpy()
    batch = type("Batch", (), {"ids": ids.numpy(), "mask": mask.numpy()})
    assert np.abs(exported.encode(batch) - expected).max() < 2e-3


def test_parity_reports_agreement_and_notices_a_wrong_export(encoder, exported, label_texts):  # noqa: F811
    vectors = np.random.default_rng(1).standard_normal((30, 16), np.float32)
    parts = Servable(encoder, vectors)
    rows = encode_with(exported, label_texts)
    good = parity(parts, rows, label_texts)
    assert good.max_abs_diff < 2e-3
    assert good.top1_agreement == 1.0
    assert parity(parts, -rows, label_texts).top1_agreement < 0.5

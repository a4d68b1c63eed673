import struct
from pathlib import Path

import faiss
import numpy as np
import pytest

from service.core.index.faiss_index import open_faiss
from service.core.index.faiss_layout import check_layout
from service.errors import BundleMismatch

DIM, N_ROWS = 16, 200
METRIC = faiss.METRIC_INNER_PRODUCT
KINDS = ("flat", "hnsw", "sq8", "pq-fastscan", "ivf-flat", "ivf-pq", "ivf-pq of many lists")
HALF = faiss.ScalarQuantizer.QT_fp16


def serialised(kind: str) -> bytes:
    rows = np.random.default_rng(3).standard_normal((N_ROWS, DIM)).astype(np.float32)
    centres, vectors = faiss.IndexFlatIP(DIM), faiss.IndexScalarQuantizer(DIM, HALF, METRIC)
    bytes_ = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, METRIC)
    codes = faiss.IndexPQFastScan(DIM, 8, 4, METRIC)
    listed = faiss.IndexIVFPQFastScan(centres, DIM, 4, 8, 4, METRIC)
    many = faiss.IndexRefine(
        faiss.IndexPQFastScan(DIM, 8, 4, METRIC), faiss.IndexScalarQuantizer(DIM, HALF, METRIC)
    )
    of_many = faiss.IndexIVFPQFastScan(many, DIM, 20, 8, 4, METRIC)
    faiss.downcast_index(many.base_index).pq.cp.min_points_per_centroid = 1
    index = {
        "flat": lambda: faiss.IndexFlatIP(DIM),
        "hnsw": lambda: faiss.IndexHNSWSQ(DIM, HALF, 8, METRIC),
        "sq8": lambda: faiss.IndexRefine(bytes_, vectors),
        "pq-fastscan": lambda: faiss.IndexRefine(codes, vectors),
        "ivf-flat": lambda: faiss.IndexIVFScalarQuantizer(centres, DIM, 4, HALF, METRIC),
        "ivf-pq": lambda: faiss.IndexRefine(listed, vectors),
        "ivf-pq of many lists": lambda: faiss.IndexRefine(of_many, vectors),
    }[kind]()
    for part in (codes, listed, of_many):  # few rows are enough here; FAISS would warn
        part.pq.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add(rows)
    return bytes(faiss.serialize_index(index))


def written(folder: Path, data: bytes) -> Path:
    path = folder / "index.faiss"
    path.unlink(missing_ok=True)  # a mapped file must not be cut short under its mapping
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_what_faiss_writes_of_our_kinds_is_known_to_the_byte(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, serialised(kind))
    check_layout(path, DIM, N_ROWS)
    assert open_faiss(path, DIM, N_ROWS, {"exact": {}}).kind == kind.split()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_or_longer_never_reaches_faiss(kind: str, tmp_path: Path) -> None:
    # FAISS' mapped reader reads beyond the mapping for some of these lengths
    data = serialised(kind)
    for length in [*range(700), *range(700, len(data), 101), len(data) - 1]:
        with pytest.raises(BundleMismatch, match=r"index\.faiss is not an index"):
            check_layout(written(tmp_path, data[:length]), DIM, N_ROWS)
    with pytest.raises(BundleMismatch, match="1 bytes follow its end"):
        check_layout(written(tmp_path, data + b"x"), DIM, N_ROWS)


@pytest.mark.parametrize("claimed", [2**31, 2**40, 2**61 + 200, 2**64 - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_length_over_the_file_is_refused_wherever_it_stands(
    kind: str, claimed: int, tmp_path: Path
) -> None:
    data = bytearray(serialised(kind))
    at = 4 + 4  # rows of the outer header
    data[at : at + 8] = struct.pack("<Q", claimed % 2**63)
    with pytest.raises(BundleMismatch):
        check_layout(written(tmp_path, bytes(data)), DIM, N_ROWS)
    data = bytearray(serialised(kind))
    data[37 : 37 + 8] = struct.pack("<Q", claimed)  # first thing after it
    with pytest.raises(BundleMismatch):
        check_layout(written(tmp_path, bytes(data)), DIM, N_ROWS)


def test_lists_that_name_another_file_are_refused(tmp_path: Path) -> None:
    data = serialised("ivf-flat").replace(b"ilar", b"ilod")
    with pytest.raises(BundleMismatch, match="'ilod'"):
        check_layout(written(tmp_path, data), DIM, N_ROWS)


def test_types_that_are_not_served_are_refused(tmp_path: Path) -> None:
    index = faiss.IndexPreTransform(faiss.PCAMatrix(DIM, 8), faiss.IndexFlatIP(8))
    path = written(tmp_path, bytes(faiss.serialize_index(index)))
    with pytest.raises(BundleMismatch, match="'IxPT' at byte 0 is not a type for label indexes"):
        check_layout(path, DIM, 0)


def test_another_metric_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, bytes(faiss.serialize_index(faiss.IndexFlatL2(DIM))))
    with pytest.raises(BundleMismatch, match="'IxF2'"):
        check_layout(path, DIM, 0)


def test_shape_is_compared_with_the_manifest(tmp_path: Path) -> None:
    path = written(tmp_path, serialised("flat"))
    with pytest.raises(BundleMismatch, match="holds 200 vectors of 16, the manifest says 201 of"):
        check_layout(path, DIM, 201)

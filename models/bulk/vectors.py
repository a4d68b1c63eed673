"""The label vectors of a bundle as Parquet, for those who run a vector engine."""

from pathlib import Path
from typing import Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import DataError
from service.atomic import write_atomic
from service.core.engine import Engine
from service.core.index.augmented import AugmentedIndex
from service.core.index.faiss_index import FaissIndex

FILE: Final = "vectors.parquet"
_ROWS_AT_ONCE: Final = 16384
"""Labels of one row group: a choice, 25 MB of vectors of 384 numbers."""


def export_vectors(bundle: Path, out: Path) -> Path:
    """Write id, text, metadata (JSON) and vector of every label; returns the file's path.

    `out` is a file that ends in .parquet, or a folder. The schema's metadata has `bundle_id`,
    `metric`, `scale` (what an inner product is multiplied by to be a raw score) and `score_kind`.
    Vectors are float32 where the index holds float32 (`flat`), else float16.
    Raises BundleError, and DataError for a bundle without label vectors.
    """
    engine = Engine.open(bundle)
    index = engine.index.labels if isinstance(engine.index, AugmentedIndex) else engine.index
    if not isinstance(index, FaissIndex):
        kind = engine.manifest.index.kind
        raise DataError(bundle, None, "an index that keeps a vector for each label", kind)
    number = pa.float32() if index.kind == "flat" else pa.float16()
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("metadata", pa.string()),
            ("vector", pa.list_(number, index.dim)),
        ],
        metadata={
            "bundle_id": engine.manifest.bundle_id,
            "metric": "inner_product",
            "scale": "1",
            "score_kind": "logit",
        },
    )
    path = out if out.suffix == ".parquet" else out / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: _write(temporary, engine, index, schema))
    return path


def _write(path: Path, engine: Engine, index: FaissIndex, schema: pa.Schema) -> None:
    number = schema.field("vector").type.value_type
    # ivf-flat reads all vectors to give some, so its rows are fetched once.
    whole = index.vectors(np.arange(index.n_rows)) if index.kind == "ivf-flat" else None
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, index.n_rows, _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, index.n_rows))
            vectors = index.vectors(rows) if whole is None else whole[rows]
            flat = pa.array(vectors.astype(number.to_pandas_dtype()).ravel(), number)
            labels = [engine.labels[row] for row in rows.tolist()]
            columns = [
                pa.array([label.label_id for label in labels], pa.string()),
                pa.array([label.text for label in labels], pa.string()),
                pa.array([orjson.dumps(label.metadata).decode() for label in labels], pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, index.dim),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))

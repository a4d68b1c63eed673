"""The contract between training and serving: what a bundle folder holds and how it is checked.

A bundle is immutable and written whole or not at all (`models.seal.bundle_writer`). This module
knows the manifest's schema, finds a bundle behind a pointer, and verifies every byte *before* any
file reaches ONNX Runtime or FAISS. It does not open the parts: that is `service.core.engine`.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from service.bundle_claims import check_claims
from service.errors import (
    BundleNotFound,
    FileCorrupt,
    FileMissing,
    FileUnlisted,
    ManifestInvalid,
    SchemaVersionUnknown,
)
from service.manifest_parts import FoldedInfo, Part, ReferenceInfo
from service.plain_files import open_plain, read_plain
from service.strict_json import MAX_JSON_BYTES, read_object

SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
POINTER: Final = "CURRENT"
MAX_MANIFEST_BYTES: Final = MAX_JSON_BYTES
EFFORTS: Final = ("fast", "balanced", "thorough", "exact")

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH_CHUNK_BYTES = 1 << 20
_POINTER_BYTES = 4096

# What no real bundle comes near, so that nothing is reserved for a number that only claims to be.
Count = Annotated[int, Field(ge=0, lt=2**31)]
"""Rows, labels, pairs: label rows are int32 in the arrays of a bundle."""
Bytes = Annotated[int, Field(ge=0, lt=2**48)]
Width = Annotated[int, Field(ge=1, le=65536)]
"""Dimensions, tokens of a text, depth of an answer."""
Name = Annotated[str, Field(min_length=1, max_length=128)]
FileNames = Annotated[list[Name], Field(min_length=1, max_length=64)]


class CodeInfo(Part):
    """Which Astrolabe wrote the bundle."""

    version: str
    revision: str


class DataInfo(Part):
    """Which data it was trained on."""

    name: str
    sha256: str
    counts: dict[str, int]


class TextInfo(Part):
    """Which text cleaning the tokenizer expects."""

    normaliser: str
    version: int


class TokenizerInfo(Part):
    """The tokenizer file and the longest input it may give the encoder, in tokens."""

    file: str
    max_tokens: Width


class VariantInfo(Part):
    """One precision of the encoder, measured on validation queries on a CPU.

    The first two figures are against torch, `p_at_1_change` (in points) against fp32, the time is
    of one query on one thread. Where this variant runs, served scores of golden queries may differ
    by `golden_drift` from the recorded ones, and by what processors differ in.
    """

    bytes: Bytes
    max_abs_diff: float
    top1_agreement: float
    p_at_1: float
    p_at_1_change: float
    encode_us_p50: float
    golden_drift: float | None = None


class EncoderInfo(Part):
    """The ONNX encoder; `variants` maps a precision (fp32, fp16, int8) to its file.

    `file` is the one that serves where no other is asked for.
    """

    file: str
    variants: Annotated[dict[Name, str], Field(min_length=1, max_length=16)]
    dim: Width
    inputs: list[str]
    opset: int
    measured: dict[str, VariantInfo] = Field(default_factory=dict)

    @property
    def served(self) -> str:
        """Precision of `file`."""
        return next(name for name, file in self.variants.items() if file == self.file)


class IndexInfo(Part):
    """The label index; `metric` is how its raw scores are made (inner_product)."""

    kind: str
    files: FileNames
    metric: str
    params: dict[str, int | float | str]
    n_rows: Annotated[Count, Field(ge=1)]


class MemoryInfo(Part):
    """Training queries whose labels are blended into every answer (retrieval augmentation).

    `files` are the index over the queries, then the offsets, label rows and values of their labels.
    `params` say how the memory was built; the rest is the arithmetic of
    `service.core.index.augmented`; without a `logit_bias` label scores are probabilities already.
    """

    kind: str
    files: Annotated[list[str], Field(min_length=4, max_length=4)]
    n_rows: Annotated[Count, Field(ge=1)]
    params: dict[str, int | float | str]
    neighbours: Width
    depth: Width
    weight: Annotated[float, Field(gt=0, lt=1)]
    temperature: Annotated[float, Field(gt=0)]
    logit_bias: float | None


class LabelsInfo(Part):
    """The label store: row number to label id, text and metadata."""

    files: FileNames
    n_labels: Annotated[Count, Field(ge=1)]


class FilterInfo(Part):
    """The item filter: item id to the label rows that answers about that item leave out.

    `own_item`: every label's own row is among an item's of the same id.
    """

    files: FileNames
    own_item: bool
    n_items: Count
    n_pairs: Annotated[int, Field(ge=0, lt=2**40)]


class CalibrationInfo(Part):
    """How raw scores become what is served; `ece` is held-out, before and after, in [0, 1]."""

    file: str | None
    kind: str
    ece_before: float | None
    ece_after: float | None


class Defaults(Part):
    """What a request gets that does not say."""

    k: Width
    effort: str


class OperatingPoint(Part):
    """One measured point of the precision/latency curve. Shares are in [0, 1], P@k in percent."""

    name: Name
    params: dict[str, Count]
    recall_at_10: float
    p_at_1: float
    p_at_5: float
    search_us_p50: float
    search_us_p99: float
    machine: str


class GoalInfo(Part):
    """What the default effort was chosen to hold on validation queries; None is no constraint.

    Microseconds and recall@10 (a share) as an operating point has them; P@1 in points below exact
    search with the trained label vectors, the index files in MB.
    """

    p99_us: float | None = None
    recall_at_10: float | None = None
    p_at_1_loss: float | None = None
    index_mb: float | None = None


class QualityInfo(Part):
    """Figures of the split named, through the very code that serves, at the default effort."""

    split: str
    n_queries: int
    effort: str
    propensity_a: float
    propensity_b: float
    metrics: dict[str, float]


class ParityInfo(Part):
    """ONNX against torch on the same inputs; agreement is a share in [0, 1]."""

    max_abs_diff: float
    top1_agreement: float
    n_queries: int


class Golden(Part):
    """A query with the answer recorded at sealing, at the default effort."""

    query: Annotated[str, Field(max_length=1 << 20)]
    label_ids: list[str]
    scores: list[float]


class FileEntry(Part):
    """What a file must be, to the byte."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Bytes


class Manifest(Part):
    """The whole of manifest.json."""

    schema_version: int
    bundle_id: str
    name: str
    created: str
    code: CodeInfo
    data: DataInfo
    config: dict[str, Any]
    text: TextInfo
    tokenizer: TokenizerInfo
    encoder: EncoderInfo
    index: IndexInfo
    memory: MemoryInfo | None = None
    labels: LabelsInfo
    filter: FilterInfo | None = None
    folded: FoldedInfo | None = None
    calibration: CalibrationInfo
    defaults: Defaults
    operating_points: Annotated[list[OperatingPoint], Field(min_length=1, max_length=64)]
    goal: GoalInfo | None = None
    quality: QualityInfo | None
    reference: ReferenceInfo | None = None
    parity: ParityInfo
    golden: Annotated[list[Golden], Field(max_length=10_000)]
    files: dict[str, FileEntry]


def bundle_id_of(manifest: dict[str, Any]) -> str:
    """SHA-256 (hex) of the canonical manifest without its `bundle_id`."""
    body = {key: value for key, value in manifest.items() if key != "bundle_id"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def resolve(path: Path) -> Path:
    """The bundle folder that `path` means: itself, or the one its pointer file names.

    Raises BundleNotFound.
    """
    if (path / MANIFEST).is_file():
        return path
    pointer = path / POINTER
    if not pointer.is_file():
        raise BundleNotFound(
            f"{path} holds neither {MANIFEST} nor {POINTER}: name a sealed bundle, or a folder "
            "of bundles as `python -m models all` writes it"
        )
    try:
        name = read_plain(pointer, _POINTER_BYTES).decode("utf-8", "replace").strip()
    except (FileMissing, FileCorrupt) as exc:
        raise BundleNotFound(exc.detail) from exc
    if not _FILE_NAME.fullmatch(name):
        raise BundleNotFound(f"{pointer} holds {name[:80]!r}, expected the name of a bundle folder")
    if not (path / name / MANIFEST).is_file():
        raise BundleNotFound(f"{pointer} names {name}, but {path / name / MANIFEST} is not there")
    return path / name


def read_manifest(folder: Path) -> Manifest:
    """Parse and cross-check manifest.json; no other file is looked at.

    Raises BundleNotFound, SchemaVersionUnknown, ManifestInvalid, BundleMismatch.
    """
    try:
        raw = read_object(folder / MANIFEST, MAX_MANIFEST_BYTES)
    except FileMissing as exc:
        raise BundleNotFound(exc.detail) from exc
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise SchemaVersionUnknown(
            f"{folder / MANIFEST}: schema_version is {version!r}, this code reads "
            f"{SCHEMA_VERSION}: serve it with the Astrolabe that sealed it, or seal it again"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestInvalid(f"{folder / MANIFEST}: field {where}: {first['msg']}") from exc
    actual = bundle_id_of(raw)
    if manifest.bundle_id != actual:
        raise ManifestInvalid(
            f"{folder / MANIFEST}: bundle_id is {manifest.bundle_id[:80]}, its content hashes to "
            f"{actual}: the manifest was changed after sealing"
        )
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ManifestInvalid(f"{folder / MANIFEST}: files: {name[:80]!r} is no file name")
    check_claims(folder / MANIFEST, manifest)
    return manifest


def verify(folder: Path) -> Manifest:
    """Check that the folder is exactly what its manifest says: names, sizes, hashes.

    Raises BundleNotFound, SchemaVersionUnknown, ManifestInvalid, BundleMismatch, FileMissing,
    FileUnlisted, FileCorrupt.
    """
    manifest = read_manifest(folder)
    for extra in sorted(set(_names_in(folder)) - set(manifest.files) - {MANIFEST}):
        raise FileUnlisted(f"{folder / extra} is not listed in {MANIFEST}: remove it")
    for name, entry in sorted(manifest.files.items()):
        _verify_file(folder / name, entry)
    return manifest


def hash_file(path: Path, max_bytes: int | None = None) -> FileEntry:
    """Size and SHA-256 of a file, read once, and to one byte over `max_bytes` at the most.

    Raises FileMissing, or FileCorrupt where it is no plain file.
    """
    digest = hashlib.sha256()
    size = 0
    with open_plain(path) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            if max_bytes is not None and size > max_bytes:
                break  # it grows while it is read
    return FileEntry(sha256=digest.hexdigest(), bytes=size)


def _verify_file(path: Path, entry: FileEntry) -> None:
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != entry.bytes:
        raise FileCorrupt(f"{path} has {size} bytes, {MANIFEST} says {entry.bytes}")
    actual = hash_file(path, entry.bytes).sha256
    if actual != entry.sha256:
        raise FileCorrupt(f"{path} has SHA-256 {actual}, {MANIFEST} says {entry.sha256}")


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as exc:
        raise BundleNotFound(f"{folder} cannot be listed: {exc.strerror}") from exc

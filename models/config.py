"""The training configuration: a frozen tree from a TOML file and `--set a.b=c` overrides.

Unknown keys and wrong types are errors that name the key. The run folder and the bundle's manifest
hold the resolved tree; its hash and the data's name the run. docs/training.md says what to set.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import ConfigError
from service.bundle.manifest import Text, Width
from service.regular_files import read_text

MAX_BYTES = 1 << 20
"""Of a configuration file. A choice: those that ship have a few kilobytes."""

AUTO: Final = "auto"
"""A value that is derived from elsewhere before a run begins."""

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Entry = TypeVar("Entry")
Grid = Annotated[list[Entry], Field(min_length=1)]
Precision = Literal["fp32", "fp16", "int8"]
Fields = Literal["title", "title+content", "title|content"]
"""What of a point or label the encoder reads: one text, or two views of one text."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TableConfig(_Section):
    """What the columns of a table are, where usual names do not tell (`models.data.tables`).

    `separator` stands between the labels of one row. Rows of one text are gathered where each has
    one label; `weight` then says how much each counts. Without files of test rows, `test_share` of
    the points is held out: the newest by `time`, else whole groups by a hash of their texts.
    `label_table` is a file with the labels' ids, texts and metadata.
    """

    text: str = ""
    content: str = ""
    labels: str = ""
    separator: str = ""
    weight: str = ""
    id: str = ""
    time: str = ""
    label_table: str = ""
    test_share: Share = 0.1


class DataConfig(_Section):
    """The folder or table of the points and labels, and the fields that the model reads.

    `title+content` is one text, `title|content` two views, each of a length of its own
    (`encoder.field_tokens`). `own_item` says that points and labels are items of one kind. A
    point's own label (the one with its uid) is then never a right answer.
    """

    path: str
    fields: Fields = "title"
    label_fields: Fields = "title"
    own_item: bool = False
    table: TableConfig = TableConfig()

    @property
    def views(self) -> list[str]:
        """The names of the fields that are kept apart; one where the text is one."""
        return self.fields.split("|")


class ValidationConfig(_Section):
    """The validation split: about `points` of the training points, whole groups at a time.

    `group` says which points are one group: volumes of a series, or points whose contents begin
    alike (`models.data.splits`).
    """

    points: Annotated[int, Field(ge=2)] = 2000
    group: Literal["series", "content", "none"] = "series"


class EncoderConfig(_Section):
    """A bag of word pieces and hashed pairs, a transformer, or both side by side.

    `dim` is the width of each half. A `frozen` transformer encodes every text once, into a cache,
    and only the layers behind it are trained. A bag's word vectors come from `bag_source`, or
    without one from `source`. With `auto`, `source` says how it pools and what it reads before the
    texts of queries and labels (`models.encoders.usage`). A transformer wider than `dim` is mapped
    to its first coordinates at first, or to the principal `axes` of its texts. Where `data.fields`
    are views, `field_tokens` has the most tokens of each, in place of `max_tokens`.
    """

    kind: Literal["bag", "transformer", "bag+transformer"] = "bag"
    source: str
    bag_source: str = ""
    dim: Width = 384
    projection_start: Literal["coordinates", "axes"] = "coordinates"
    pooling: Literal["auto", "mean", "cls"] = AUTO
    query_prefix: Text = AUTO
    label_prefix: Text = AUTO
    frozen: bool = True
    pair_buckets: Positive = 65536
    word_smoothing: Annotated[float, Field(gt=0)] = 1e-3
    max_tokens: Annotated[Width, Field(ge=4)] = 64
    field_tokens: Annotated[list[Annotated[Width, Field(ge=4)]], Field(max_length=2)] = []
    scratch_vocabulary: Positive = 16384

    @property
    def limits(self) -> list[int]:
        """The most tokens of each view of a text."""
        return self.field_tokens or [self.max_tokens]


class MethodConfig(_Section):
    """The method, and how it draws and weighs negatives (ASTRA, arXiv 2409.20156).

    `full-bce` scores every label in every step; ASTRA estimates this loss. `mips-s` (Qaraei and
    Babbar, 2023) takes the nearest wrong labels themselves, with the weight of uniform ones.
    `logit_bias` is added to every training score, so that each label is improbable at first.
    `softmax_share` of the loss is a softmax over the same negatives, the rest is BCE
    (docs/decisions/0011). A label row's targets are its label and `label_cooccurrence` of the
    probability of labels that come with it. `elias` has a section of its own; of this one it reads
    `label_rows`, `label_cooccurrence`, `label_init`, `label_init_norm`, `score_scale`, `logit_bias`
    and `dropout`.
    """

    kind: Literal["astra", "full-bce", "mips-s", "elias"] = "astra"
    weights: Literal["balance", "unit", "capped", "self-normalised"] = "balance"
    weight_cap: Annotated[float, Field(gt=0)] = 4.0
    search: Literal["index", "exact"] = "index"
    hard_only: bool = False
    label_device: Literal["encoder", "host"] = "encoder"
    label_chunk: Positive = 16384
    uniform_negatives: Positive = 1500
    hard_negatives: Annotated[int, Field(ge=0)] = 30
    hard_pool: Positive = 100
    uniform_only_epochs: Annotated[int, Field(ge=0)] = 1
    refresh_epochs: Annotated[int, Field(ge=0)] = 2
    label_rows: bool = True
    label_cooccurrence: Share = 0.0
    label_init: Literal["text", "zero"] = "text"
    label_init_norm: Annotated[float, Field(ge=0)] = 1.0
    score_scale: Annotated[float, Field(gt=0)] = 10.0
    logit_bias: float = -9.0
    softmax_share: Share = 0.0
    dropout: Share = 0.4


class EliasConfig(_Section):
    """ELIAS (arXiv 2210.08410): clusters and edges to labels, learnt with the rest of the model.

    Symbols are the paper's. A cluster's score is min(1, alpha * softmax over clusters), an edge's
    weight min(1, beta * softmax over its cluster's `kappa` edges). With `learned` false, training
    ends with fixed clusters. `clusters` 0 derives their number from the label count.
    `learned_rate` scales the other learning rates while edges are learnt. `train.epochs` counts
    the epochs of the last phase.
    """

    learned: bool = True
    edge_start: Literal["random", "counts"] = "counts"
    labels_anew: bool = False
    clusters: Annotated[int, Field(ge=0)] = 0
    kappa: Positive = 400
    alpha: Annotated[float, Field(gt=0)] = 10.0
    beta: Annotated[float, Field(gt=0)] = 200.0
    beam: Positive = 5
    shortlist: Positive = 1000
    path_weight: Annotated[float, Field(ge=0)] = 1.0
    initial_epochs: Annotated[int, Field(ge=0)] = 1
    fixed_epochs: Positive = 4
    cluster_lr: Annotated[float, Field(gt=0)] = 0.002
    edge_lr: Annotated[float, Field(gt=0)] = 0.02
    learned_rate: Annotated[float, Field(gt=0)] = 0.3


class TeacherConfig(_Section):
    """Distillation: the probabilities of the bundle or run at `path` become soft targets."""

    path: str = ""
    top: Positive = 30
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5


class TrainConfig(_Section):
    """The training loop: learning rates, schedule, precision, device, early stopping, checkpoints.

    `patience` epochs without a better nDCG@5 on validation points end the last phase. With
    `start_from`, a run's folder or a bundle whose run is there, training goes on from that model;
    pre-training is then left out.
    """

    start_from: str = ""

    epochs: Positive = 6
    batch_size: Positive = 512
    encoder_lr: Annotated[float, Field(gt=0)] = 0.01
    projection_lr: Annotated[float, Field(gt=0)] = 0.001
    transformer_lr: Annotated[float, Field(gt=0)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    label_lr: Annotated[float, Field(gt=0)] = 0.01
    schedule: Literal["linear", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    accumulate: Positive = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    patience: Positive = 2
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0


class PretrainConfig(_Section):
    """Contrastive pre-training of the encoder before the method (NGAME); 0 epochs leave it out.

    A query and the text of one of its labels go through the same encoder. A batch consists of
    clusters of `cluster_size` similar queries; the size doubles every `cluster_double_epochs`.
    `train` sets the schedule, weight decay, precision and device.
    """

    epochs: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=2)] = 1024
    loss: Literal["hinge", "infonce"] = "hinge"
    margin: Annotated[float, Field(gt=0)] = 0.3
    hard_negatives: Positive = 10
    temperature: Annotated[float, Field(gt=0)] = 0.1
    cluster_size: Positive = 8
    cluster_double_epochs: Positive = 2
    cluster_refresh_epochs: Positive = 5
    encoder_lr: Annotated[float, Field(gt=0)] = 0.01
    projection_lr: Annotated[float, Field(gt=0)] = 0.001
    transformer_lr: Annotated[float, Field(gt=0)] = 5e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    patience: Positive = 2


class ExportConfig(_Section):
    """Precisions of the ONNX encoder: which ones a bundle carries and which one it serves.

    `auto` serves half precision for a bag, and int8 for a transformer, because CPUs run it fastest.
    A precision that loses more than `max_p_at_1_loss` of fp32's P@1 is left out, unless `serve`
    names it. A bundle carries all other precisions, or with `carry` "served" only the one that it
    serves. Every precision is measured.
    """

    variants: Annotated[list[Precision], Field(min_length=1)] = ["fp32", "fp16", "int8"]
    serve: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    carry: Literal["all", "served"] = "all"
    max_p_at_1_loss: Share = 0.01

    @model_validator(mode="after")
    def _check_names(self) -> "ExportConfig":
        if len(set(self.variants)) < len(self.variants):
            raise ValueError("export.variants names a precision twice")
        if self.serve != "auto" and self.serve not in self.variants:
            raise ValueError(
                f"export.serve is {self.serve}, which is not among export.variants: add it there"
            )
        return self


class IndexConfig(_Section):
    """The label index; each effort must reach its `recall_` (recall@10) on validation points.

    `m` and `ef_construction` are for the graph; with an `m` of 1 FAISS would never end. `ivf_lists`
    is the number of inverted lists (0 derives it from the label count), and each label lies in
    `ivf_copies` of them. `pq_dims` dimensions share a 4-bit code. `tree_` keys are for label trees;
    a `tree_gamma` or `tree_entropy` over 0 puts frequent labels nearer to the root.
    """

    kind: Literal[
        "hnsw", "flat", "sq8", "pq-fastscan", "ivf-flat", "ivf-pq", "label-tree", "learned-graph"
    ] = "hnsw"
    m: Annotated[int, Field(ge=2)] = 32
    ef_construction: Positive = 200
    ivf_lists: Annotated[int, Field(ge=0)] = 0
    ivf_copies: Literal[1, 2] = 1
    pq_dims: Positive = 2
    tree_form: Literal["mass", "entropy"] = "mass"
    tree_gamma: Annotated[float, Field(ge=0, le=1)] = 0.0
    tree_entropy: Annotated[float, Field(ge=0)] = 0.1
    tree_leaf: Positive = 32
    tree_arity: Literal[2, 4, 8, 16, 32, 64] = 16
    tree_count: Positive = 1
    tree_seed: Annotated[int, Field(ge=0)] = 1
    tree_teacher_top: Annotated[int, Field(ge=0)] = 5
    tree_path_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    tree_epochs: Positive = 5
    tree_lr: Annotated[float, Field(gt=0)] = 0.1
    tree_penalty: Annotated[float, Field(ge=0)] = 0.1
    recall_fast: Share = 0.95
    recall_balanced: Share = 0.99
    recall_thorough: Share = 0.999


class MemoryConfig(_Section):
    """The memory: training queries with their labels (retrieval-augmented scoring).

    `auto` keeps it only if it gains over two standard errors of nDCG@5 on validation points. Each
    combination of `weights`, `temperatures` and `neighbours` is tried. `depth` labels of the index
    are blended. Each effort must find the share `recall_` of the ten nearest queries.
    """

    kind: Literal["none", "auto", "queries"] = "none"
    values: Literal["one", "share"] = "one"
    depth: Annotated[Width, Field(ge=10)] = 30
    weights: Grid[Annotated[float, Field(gt=0, lt=1)]] = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    temperatures: Grid[Annotated[float, Field(gt=0)]] = [0.02, 0.05, 0.1, 0.2]
    neighbours: Grid[Width] = [10, 30, 100]
    recall_fast: Share = 0.85
    recall_balanced: Share = 0.95
    recall_thorough: Share = 0.99


class RerankConfig(_Section):
    """The second stage: trees that re-order the first `depth` labels of an answer (LambdaMART).

    `auto` keeps it only if it gains over two standard errors of nDCG@5 on validation points. The
    trees learn from `scores` of points that the scoring model was not trained on. With `folds` each
    of so many parts of the training points is scored by a model of the other parts, which trains
    for `fold_epochs` of all epochs. With `validation` the trees learn from the validation points.
    """

    kind: Literal["none", "auto", "trees"] = "none"
    scores: Literal["folds", "validation"] = "folds"
    folds: Annotated[int, Field(ge=2, le=10)] = 2
    fold_epochs: Annotated[float, Field(gt=0, le=1)] = 1.0
    depth: Annotated[Width, Field(ge=10, le=100)] = 20
    trees: Annotated[int, Field(ge=1, le=2000)] = 120
    leaves: Annotated[int, Field(ge=2, le=255)] = 15
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1


class MetricsConfig(_Section):
    """A and B of the inverse propensities (Jain et al., KDD 2016).

    The upper bounds are choices that keep powers finite.
    """

    propensity_a: Annotated[float, Field(ge=0, le=10)] = 0.55
    propensity_b: Annotated[float, Field(gt=0, le=1000)] = 1.5


class ReleaseConfig(_Section):
    """The limits that a bundle must keep, its default k, and its number of golden queries.

    fp32 may differ from torch by `max_parity_diff` at most, in any dimension. The first labels by
    both must be equal for `min_top1_agreement` of the texts. With `not_worse_than`, a bundle, P@1
    on the same test points must not be `not_worse_margin` points below that bundle's: the 95 %
    interval of the difference tells.
    """

    default_k: Width = 10
    golden_queries: Annotated[int, Field(ge=1, le=10_000)] = 20
    max_parity_diff: Annotated[float, Field(gt=0)] = 1e-3
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] = 0.995
    not_worse_than: str = ""
    not_worse_margin: Annotated[float, Field(ge=0, le=100)] = 1.0


class Config(_Section):
    """The whole tree; `name` names run and bundle folders (default: the file's own name)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    data: DataConfig
    validation: ValidationConfig = ValidationConfig()
    encoder: EncoderConfig
    method: MethodConfig = MethodConfig()
    elias: EliasConfig = EliasConfig()
    teacher: TeacherConfig = TeacherConfig()
    pretrain: PretrainConfig = PretrainConfig()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    index: IndexConfig = IndexConfig()
    memory: MemoryConfig = MemoryConfig()
    rerank: RerankConfig = RerankConfig()
    metrics: MetricsConfig = MetricsConfig()
    release: ReleaseConfig = ReleaseConfig()

    @model_validator(mode="after")
    def _cross_check(self) -> "Config":
        method, train = self.method, self.train
        self._check_elias()
        self._check_fields()
        mining = method.kind in ("astra", "mips-s") and method.hard_negatives > 0
        if mining and method.uniform_only_epochs >= train.epochs:
            raise ValueError(
                f"method.uniform_only_epochs ({method.uniform_only_epochs}) leaves none of "
                f"train.epochs ({train.epochs}) for hard negatives; lower it, or set "
                "method.hard_negatives = 0"
            )
        if train.start_from and method.kind == "elias":
            raise ValueError(
                "train.start_from is for methods with one vector a label, and elias has more: "
                "leave it empty"
            )
        if method.softmax_share and method.kind in ("full-bce", "elias"):
            raise ValueError(
                f"method.softmax_share is for losses that sample: {method.kind} has no softmax"
            )
        if method.label_cooccurrence and not method.label_rows:
            raise ValueError(
                "method.label_cooccurrence is for label rows: set method.label_rows, or leave it 0"
            )
        if method.hard_only and not mining:
            raise ValueError(
                "method.hard_only leaves no negatives at all without hard ones: "
                "set method.hard_negatives, and a method.kind that mines"
            )
        if self.rerank.kind != "none" and self.index.kind in ("label-tree", "learned-graph"):
            raise ValueError(
                f"rerank.kind {self.rerank.kind} and index.kind {self.index.kind} do not go "
                "together: trees re-order inner products; set rerank.kind to none, or take another "
                "index"
            )
        index = self.index
        if not index.recall_fast <= index.recall_balanced <= index.recall_thorough:
            raise ValueError("index.recall_fast, _balanced and _thorough must rise in this order")
        return self

    def _check_fields(self) -> None:
        """Refuse a number of lengths that is not that of the views, and labels of more views."""
        n_views, n_lengths = len(self.data.views), len(self.encoder.field_tokens)
        if n_lengths != (n_views if n_views > 1 else 0):
            raise ValueError(
                f"data.fields {self.data.fields} and {n_lengths} encoder.field_tokens do not go "
                "together: give one for each view, such as [16, 64], and none for one text"
            )
        if "|" in self.data.label_fields and n_views == 1:
            raise ValueError(
                f"data.label_fields is {self.data.label_fields}, and data.fields is "
                f"{self.data.fields}, which has no views: labels are read as points are"
            )

    def _check_elias(self) -> None:
        """Refuse `elias` settings of another method, and an index that cannot serve the method."""
        is_elias, is_graph = self.method.kind == "elias", self.index.kind == "learned-graph"
        if not is_elias and self.elias != EliasConfig():
            raise ValueError(
                f"elias.* are set, but method.kind is {self.method.kind}: "
                "set method.kind to elias, or remove them"
            )
        if is_elias and self.method.label_device == "host":
            raise ValueError(
                "method.label_device host is for methods that sample, and elias scores all of "
                "its shortlist: set it to encoder"
            )
        if is_elias != is_graph:
            raise ValueError(
                f"method.kind {self.method.kind} and index.kind {self.index.kind} do not go "
                "together: elias is served by learned-graph, and no other method is"
            )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the resolved tree as JSON."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `a.b=value` overrides.

    An override's value is TOML, or a bare word. Raises ConfigError, which names the file and the
    key.
    """
    try:
        raw = tomllib.loads(read_text(path, MAX_BYTES))
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    raw.setdefault("name", path.stem)
    for override in overrides:
        apply_override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as exc:
        raise ConfigError(f"{path}: {config_sentence(exc)}") from exc


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a raw configuration. Raises ConfigError."""
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigError(f"--set {override}: expected key.subkey=value")
    node = raw
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {part} is not a section")
    node[parts[-1]] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def config_sentence(exc: ValidationError) -> str:
    """The first fault of a configuration, with its key."""
    first = exc.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}: check its spelling against docs/training.md"
    value = "" if first["type"] == "missing" else f" (found {first['input']!r:.80})"
    return f"{key or 'configuration'}: {first['msg']}{value if key else ''}"


def fold_config(config: Config) -> Config:
    """The configuration of a fold's model: `rerank.fold_epochs` of the epochs, no second stage.

    It starts from nothing, because an earlier model knows the points that the fold holds out. At
    least one epoch stays, and one with hard negatives where the method mines them.
    """
    share, train, pretrain = config.rerank.fold_epochs, config.train, config.pretrain
    least = config.method.uniform_only_epochs + 1 if config.method.hard_negatives else 1
    epochs = min(train.epochs, max(least, round(share * train.epochs)))
    update = {
        "train": train.model_copy(update={"epochs": epochs, "start_from": ""}),
        "pretrain": pretrain.model_copy(update={"epochs": round(share * pretrain.epochs)}),
        "rerank": RerankConfig(),
    }
    return config.model_copy(update=update)

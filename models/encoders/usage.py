"""How a pretrained encoder wants to be used: how it pools, and what it reads before a text.

A folder of sentence-transformers says so beside the weights: `modules.json` lists the steps of the
model, the folder of the step Pooling has its settings, `config_sentence_transformers.json` the
prompts. Without these files the mean is pooled, and texts have no prefix. Embeddings have unit norm
whether the list has a step Normalize or not.
"""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.config import AUTO, Config, EncoderConfig
from models.encoders.source import CONFIG_FILE, MODULES_FILE, PROMPTS_FILE, SCRATCH, locate
from models.errors import SourceError
from service.regular_files import read_text

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 20
"""Of such a file. A choice: the largest have some kilobytes."""
MAX_PREFIX = 1024
"""Characters that a manifest has room for."""

_POOLINGS: dict[str, Literal["mean", "cls"]] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
}
_STEPS = {"Transformer", "Pooling", "Normalize"}
# Where sentence-transformers looks for the prompt of a query and of a document; the first counts.
_QUERY_PROMPTS = ("query",)
_LABEL_PROMPTS = ("document", "passage", "corpus")


class _Step(BaseModel):
    path: str
    type: str


class _PoolingSettings(BaseModel):
    """`pooling_mode` names the mode; older files have a switch for each, `pooling_mode_NAME`."""

    model_config = ConfigDict(extra="allow")

    pooling_mode: str | None = None
    include_prompt: bool = True

    @property
    def modes(self) -> list[str]:
        """The modes that are switched on."""
        if self.pooling_mode is not None:
            return [self.pooling_mode]
        switches = self.model_extra or {}
        return [key.removeprefix("pooling_mode_") for key, on in switches.items() if on is True]


class _Prompts(BaseModel):
    prompts: dict[str, Annotated[str, Field(max_length=MAX_PREFIX)]] = {}
    default_prompt_name: str | None = None

    def first(self, names: tuple[str, ...]) -> str:
        """The first of these prompts that there is, else the default one, else none."""
        given = [self.prompts[name] for name in names if name in self.prompts]
        return given[0] if given else self.prompts.get(self.default_prompt_name or "", "")


def resolve_config(config: Config) -> Config:
    """The configuration with what its source says for each `auto` of the encoder.

    Raises SourceError.
    """
    return config.model_copy(update={"encoder": resolve_encoder(config.encoder)})


def resolve_encoder(config: EncoderConfig) -> EncoderConfig:
    """The section `encoder` as `resolve_config` gives it; a bag alone has no prefixes."""
    given = config.model_dump(include={"pooling", "query_prefix", "label_prefix"})
    derived = {key for key, value in given.items() if value == AUTO}
    usage = {"pooling": "mean", "query_prefix": "", "label_prefix": ""}
    if derived and config.kind != "bag" and config.source != SCRATCH:
        folder = locate(config.source)
        prompts = _read(folder / PROMPTS_FILE, _Prompts) or _Prompts()
        usage["query_prefix"] = prompts.first(_QUERY_PROMPTS)
        usage["label_prefix"] = prompts.first(_LABEL_PROMPTS)
        if "pooling" in derived:
            usage["pooling"] = _pooling(folder)
    return config.model_copy(update={key: usage[key] for key in derived})


def _pooling(folder: Path) -> Literal["mean", "cls"]:
    listed = _read(folder / MODULES_FILE, list[_Step]) or []
    steps = {step.type.rpartition(".")[2]: step for step in listed}
    for name in steps.keys() - _STEPS:
        log.warning("%s: its step %s is left out; encoder.dim has a map of its own", folder, name)
    if "Pooling" not in steps:
        return "mean"
    path = folder / steps["Pooling"].path / CONFIG_FILE
    settings = _read(path, _PoolingSettings) or _PoolingSettings()
    modes = settings.modes
    if len(modes) != 1 or modes[0] not in _POOLINGS or not settings.include_prompt:
        without = "" if settings.include_prompt else " without the prompt"
        raise SourceError(
            f"{path} pools {' and '.join(modes) or 'nothing'}{without}, which is not offered: set "
            "encoder.pooling to mean or cls"
        )
    return _POOLINGS[modes[0]]


def _read(path: Path, kind: Any) -> Any:
    """The JSON file as `kind`; None where there is none. Raises SourceError."""
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(read_text(path, MAX_BYTES))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SourceError(f"{path}: {where}: {first['msg']}: restore the source's file") from exc
    except ValueError as exc:
        raise SourceError(str(exc)) from exc

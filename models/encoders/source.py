"""Finds a pretrained encoder's files: in a package (`package:NAME`), a local folder or a hub.

A source is a folder with `tokenizer.json` and `model.safetensors`; a transformer also needs
`config.json`. A package and a folder need no network. A hub id needs the extra `hub`. This module
reads word vectors only; models.encoders.transformer loads whole transformers, and
models.encoders.usage reads how they pool and what they read before a text.
"""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from models.errors import SourceError

TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"
PACKAGE_PREFIX = "package:"
SCRATCH = "scratch"
"""The source that is none: a tokenizer is learnt, or word vectors are random."""

WORD_TABLES = ("word_embeddings.weight", "tok_embeddings.weight", "embed_tokens.weight")
"""How names of the table of word vectors end: in the family of BERT, in ModernBERT, in EuroBERT."""


def locate(source: str) -> Path:
    """Find the folder with the source's tokenizer and weights. Raises SourceError."""
    if source.startswith(PACKAGE_PREFIX):
        return _in_package(source.removeprefix(PACKAGE_PREFIX))
    folder = Path(source)
    if folder.is_dir():
        return _checked(folder, source)
    if folder.is_absolute() or source.startswith("."):
        raise SourceError(f"encoder.source {source}: there is no such folder")
    return _from_hub(source)


def word_vectors(folder: Path) -> NDArray[np.float32]:
    """Read the word vectors (vocabulary, dim) from the weights. Raises SourceError."""
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(str(path), framework="numpy") as tensors:
            names = [name for name in tensors.keys() if name.endswith(WORD_TABLES)]  # noqa: SIM118
            if len(names) == 1:
                return np.asarray(tensors.get_tensor(names[0]), np.float32)
    except SafetensorError as exc:
        raise SourceError(f"{path} is no safetensors file: {exc}") from exc
    raise SourceError(
        f"{path}: expected one tensor of word vectors, named *{' or *'.join(WORD_TABLES)}, found "
        f"{len(names)}"
    )


def _in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"encoder.source package:{name}: no such package is installed; "
            "`make setup` installs the one that the shipped configurations use"
        )
    for root in spec.submodule_search_locations:
        for tokenizer in sorted(Path(root).rglob(TOKENIZER_FILE)):
            if (tokenizer.parent / WEIGHTS_FILE).is_file():
                return tokenizer.parent
    raise SourceError(
        f"encoder.source package:{name} carries no folder with both {TOKENIZER_FILE} "
        f"and {WEIGHTS_FILE}"
    )


def _from_hub(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as exc:
        raise SourceError(
            f"encoder.source {source} is no folder, and to fetch it from a hub "
            "huggingface-hub must be installed: pip install 'astrolabe[hub]'"
        ) from exc
    try:
        files = [TOKENIZER_FILE, WEIGHTS_FILE, CONFIG_FILE, MODULES_FILE, PROMPTS_FILE]
        folder = snapshot_download(source, allow_patterns=[*files, f"*_Pooling/{CONFIG_FILE}"])
    except Exception as exc:  # the client raises many unrelated types for network and name errors
        raise SourceError(f"encoder.source {source} could not be fetched: {exc}") from exc
    return _checked(Path(folder), source)


def _checked(folder: Path, source: str) -> Path:
    for name in (TOKENIZER_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise SourceError(f"encoder.source {source}: {folder / name} is not there")
    return folder

"""What a plan is made from: counts of the data, and what the machine has."""

import os
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.data.dataset import Dataset, has_text
from models.encoders.source import TOKENIZER_FILE, locate
from service.core.encoding.tokenizer import Tokenizer

SAMPLE: Final = 2000
"""Texts that lengths, scripts and times are taken from. A choice: a second of work."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts of a data set and of the machine. Times are seconds, sizes bytes."""

    n_points: int
    n_test: int
    n_labels: int
    labels_a_point: float
    n_without_text: int
    n_without_labels: int
    n_duplicates: int
    has_contents: bool
    scripts: dict[str, float]
    """Share of the letters of a sample by script, the commonest first."""
    tokens_p99: int
    content_tokens_p99: int
    tokenizing_s: float
    """CPU seconds to tokenize one text."""
    n_cpus: int
    memory_bytes: int
    has_gpu: bool


def facts_of(dataset: Dataset, source: str) -> Facts:
    """Look at a data set, a sample of its texts, and the machine."""
    train = dataset.train
    rows = np.random.default_rng(1).permutation(len(train))[:SAMPLE]
    titles = [train.titles[row] for row in rows]
    contents = [train.contents[row] for row in rows if train.contents[row]]
    counts = np.diff(train.labels.indptr)
    texts = [text for text in train.titles if has_text(text)]
    tokenizer = Tokenizer(locate(source) / TOKENIZER_FILE, 512)
    begin = time.process_time()
    lengths = [len(encoding.ids) for encoding in tokenizer.tokenize(titles)]
    tokenizing_s = (time.process_time() - begin) / max(len(titles), 1)
    content_lengths = [len(encoding.ids) for encoding in tokenizer.tokenize(contents)] or [0]
    return Facts(
        len(train),
        0 if dataset.test is None else len(dataset.test),
        len(dataset.labels),
        float(counts.mean()) if len(counts) else 0.0,
        len(train) - len(texts),
        int((counts == 0).sum()),
        len(texts) - len(set(texts)),
        bool(contents),
        _scripts(titles),
        int(np.percentile(lengths, 99)) if lengths else 0,
        int(np.percentile(content_lengths, 99)),
        tokenizing_s,
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        _memory_bytes(),
        _has_gpu(),
    )


def _scripts(texts: list[str]) -> dict[str, float]:
    letters = Counter(char for text in texts for char in text if char.isalpha())
    names: Counter[str] = Counter()
    for char, count in letters.items():
        # The first word of a letter's name is its script ("LATIN SMALL LETTER A"), as there is no
        # property of that in the standard library.
        names[unicodedata.name(char, "UNKNOWN").split()[0].title()] += count
    total = max(sum(names.values()), 1)
    return {name: count / total for name, count in names.most_common(4)}


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()

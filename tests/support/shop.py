"""A small catalogue over the tiny bundle, opened as a service would, as often as a test wants."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from service.core.catalogue.changes import Change
from service.core.catalogue.live import LiveCatalogue
from service.core.catalogue.sqlite_store import SqliteStore, store_path
from service.core.catalogue.store import ChangeStore
from service.core.encoding.embedding import embed_texts
from service.core.engine import Engine

MAX_TOKENS = 2048


def catalogue_of(engine: Engine, store: ChangeStore | None) -> LiveCatalogue:
    """The live catalogue of an open bundle."""
    return engine.catalogue if store is None else engine.with_store(store).catalogue


@contextmanager
def opened(folder: Path, state: Path) -> Iterator[tuple[Engine, LiveCatalogue]]:
    """A bundle with its catalogue, changes in `state`, closed at the end."""
    engine = Engine.open(folder, device="cpu")
    store = SqliteStore(store_path(state, engine.manifest.name), engine.manifest.name)
    try:
        yield engine, catalogue_of(engine, store)
    finally:
        store.close()


def embed(engine: Engine, texts: Sequence[str]) -> np.ndarray:
    """Queries (n, dim) of texts."""
    return embed_texts(engine.tokenizer, engine.encoder, texts, MAX_TOKENS)


def answer(
    engine: Engine, catalogue: LiveCatalogue, text: str, k: int = 10, effort: str = "exact"
) -> list[tuple[str, float]]:
    """Label ids with raw scores, best first."""
    hits = catalogue.search(embed(engine, [text]), k, effort)
    ids = [catalogue.label(int(row)).label_id for row in hits.rows[0]]
    return list(zip(ids, hits.scores[0].tolist(), strict=True))


def ids_of(engine: Engine, catalogue: LiveCatalogue, text: str, k: int = 10) -> list[str]:
    """Label ids, best first."""
    return [label_id for label_id, _ in answer(engine, catalogue, text, k)]


def add(label_id: str, text: str, **metadata: object) -> Change:
    """A label to be added."""
    return Change("add", label_id, text, metadata)

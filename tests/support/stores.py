"""Stores of changes by their place, whichever database keeps them."""

from pathlib import Path

from service.core.catalogue.postgres_store import PostgresStore
from service.core.catalogue.sqlite_store import SqliteStore


def open_at(place: str) -> SqliteStore | PostgresStore:
    """The catalogue `shop` at the path of a file, or at the URL of a database."""
    if place.endswith(".sqlite"):
        return SqliteStore(Path(place), "shop")
    return PostgresStore(place, "shop")

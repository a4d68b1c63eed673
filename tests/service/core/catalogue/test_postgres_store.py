"""The database of changes: what befalls its server, and what was restored from a backup."""

import psycopg
import pytest

from service.core.catalogue.changes import Change
from service.core.catalogue.postgres_store import PostgresStore
from service.core.engine import Engine
from service.errors import CatalogueCorrupt, CatalogueUnavailable, SettingsInvalid
from tests.support.postgres import execute, fresh_database, running_server
from tests.support.shop import add, answer, catalogue_of


@pytest.fixture
def url(postgres):
    with fresh_database(postgres.url) as url:
        yield url


@pytest.fixture
def store(url):
    opened = PostgresStore(url, "shop")
    yield opened
    opened.close()


def append(store, *changes):
    return store.append(changes, {}.get, 0)


def test_catalogues_of_one_database_know_nothing_of_each_other(store, url):
    other = PostgresStore(url, "books")
    append(store, add("a", "one"))
    assert not other.changed()
    assert append(other, add("a", "another one"))[0].seq == 1
    other.close()
    assert len(store.since(0)) == 1


def test_a_lost_connection_is_opened_anew(store, url):
    append(store, add("a", "one"))
    execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'astrolabe' AND datname = current_database()",
    )
    with pytest.raises(CatalogueUnavailable):
        append(store, add("b", "two"))
    append(store, add("b", "two"))
    assert [change.label_id for change in store.since(0)] == ["a", "b"]


def test_a_server_that_stops_and_comes_back_has_everything():
    with running_server() as server:
        store = PostgresStore(server.url, "shop")
        append(store, add("a", "one"))
        server.stop("immediate")  # as a crash would
        for call in (store.history, store.changed, lambda: append(store, add("b", "two"))):
            with pytest.raises(CatalogueUnavailable, match="PostgreSQL at"):
                call()
        server.start()
        assert not store.changed()
        append(store, add("b", "two"))
        assert [change.label_id for change in store.since(0)] == ["a", "b"]
        store.close()


def test_a_lock_that_does_not_go_away_is_said(url, monkeypatch):
    monkeypatch.setattr("service.core.catalogue.postgres_store.WAIT_S", 0.05)
    store = PostgresStore(url, "shop")
    with psycopg.connect(url) as db:
        db.execute("UPDATE astrolabe.catalogues SET last_seq = last_seq")
        with pytest.raises(CatalogueUnavailable, match="lock timeout"):
            append(store, add("a", "one"))
    append(store, add("a", "one"))
    store.close()


@pytest.mark.parametrize(
    ("statement", "error", "says"),
    [
        (
            "ALTER ROLE postgres IN DATABASE {db} SET synchronous_commit = off",
            0,
            "synchronous_commit",
        ),
        ("UPDATE astrolabe.catalogues SET format = 2", CatalogueCorrupt, "format 2"),
        ("UPDATE astrolabe.changes SET metadata = 'x'", CatalogueCorrupt, "change 1"),
        ("DROP TABLE astrolabe.changes", 0, "does not exist"),
    ],
)
def test_a_database_that_does_not_fit_is_refused(url, statement, error, says):
    store = PostgresStore(url, "shop")
    append(store, add("a", "one"))
    store.close()
    ((name,),) = execute(url, "SELECT current_database()")
    execute(url, statement.format(db=name))

    def read():
        store = PostgresStore(url, "shop")
        try:
            store.since(0)
        finally:
            store.close()

    with pytest.raises(error or CatalogueUnavailable, match=says):
        read()


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("postgresql://localhost:x/y", CatalogueUnavailable, "port"),
        ("not a url", SettingsInvalid, "catalogue_url"),
        ("postgresql://user:secret@127.0.0.1:9/db", CatalogueUnavailable, "127.0.0.1:9/db"),
    ],
)
def test_a_url_without_a_server_is_said_without_its_password(url, error, says):
    with pytest.raises(error, match=says) as caught:
        PostgresStore(url, "shop")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("way", ["it ends earlier", "it is another one", "the database is empty"])
def test_a_restored_database_takes_back_what_was_lost(way, url, tiny_flat_bundle):
    engine = Engine.open(tiny_flat_bundle, device="cpu")
    one, other = (PostgresStore(url, engine.manifest.name) for _ in range(2))
    catalogue = catalogue_of(engine, one)
    catalogue.apply([add("kept", "a garden of roses"), Change("remove", "L001")])
    kept = 0 if way == "the database is empty" else 2
    catalogue.apply(
        [
            add("lost", "a storm at sea"),
            Change("update", "L002", metadata={"new": 1}),
            Change("update", "L003", text="a whale and a star"),
            Change("remove", "L004"),
            Change("update", "kept", text="a song of the king"),
            Change("remove", "L005"),
        ]
    )
    if kept:
        for table in ("changes", "vectors"):
            execute(url, f"DELETE FROM astrolabe.{table} WHERE seq > {kept}")
        change = "history = gen_random_uuid(), " if way == "it is another one" else ""
        execute(url, f"UPDATE astrolabe.catalogues SET {change}last_seq = {kept}")
    else:
        execute(url, "DROP SCHEMA astrolabe CASCADE")
        other.close()
        other = PostgresStore(url, engine.manifest.name)
    fresh = catalogue_of(engine, other)
    assert catalogue.poll()
    for text in ("a storm at sea", "a garden of roses", "a whale and a star", "a song"):
        assert answer(engine, catalogue, text) == answer(engine, fresh, text)
    assert (catalogue.n_rows, catalogue.seq) == (fresh.n_rows, fresh.seq) == (fresh.n_rows, kept)
    for catalogues in ((catalogue, fresh), (fresh, catalogue)):
        catalogues[0].apply(
            [add(*(("x", "a rose") if catalogues[0] is fresh else ("y", "a star")))]
        )
        assert catalogues[1].poll()
    for text in ("a rose", "a star"):
        assert answer(engine, catalogue, text) == answer(engine, fresh, text)
    catalogue.close()
    fresh.close()
    one.close()
    other.close()

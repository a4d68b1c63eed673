"""What users did with answers: sent over HTTP, and read from the files that it becomes."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.feedback import row_log
from service.feedback.schemas import ANSWERS, EVENTS
from tests.support.fakes import FakeClock, FakePredict, Running, running
from tests.support.row_logs import ROW, log

pytestmark = pytest.mark.anyio

CLICK = {"text": "whale ship", "label": "L001", "event": "clicked", "value": 2.5, "position": 3}


@asynccontextmanager
async def served(folder: Path | None, **changes: Any) -> AsyncIterator[Running]:
    async with running(FakePredict(), feedback_dir=folder, **changes) as service:
        yield service


def rows(folder: Path, kind: str = "events") -> list[dict[str, Any]]:
    return [
        row
        for path in sorted(folder.glob(f"{kind}-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


async def test_events_become_parquet_when_the_service_ends(tmp_path: Path) -> None:
    by_id = {"request_id": "r1", "query": 1, "label": "L002", "event": "rejected"}
    async with served(tmp_path) as service:
        answer = await service.client.post("/v1/feedback", json={"events": [CLICK, by_id]})
        assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
    stored = rows(tmp_path)
    assert [(r["text"], r["label_id"], r["event"], r["value"], r["position"]) for r in stored] == [
        ("whale ship", "L001", "clicked", 2.5, 3),
        (None, "L002", "rejected", None, None),
    ]
    assert stored[1]["request_id"] == "r1"
    assert stored[0]["time"].year >= 2024
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"event": "liked"}, "events[0].event"),
        ({"text": None}, "request_id or text"),
        ({"position": 0}, "events[0].position"),
        ({"value": -1}, "events[0].value"),
        ({"label": ""}, "events[0].label"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_event_is_named_and_none_is_stored(
    tmp_path: Path, changed: dict[str, Any], fault: str
) -> None:
    async with served(tmp_path) as service:
        answer = await service.client.post(
            "/v1/feedback", json={"events": [{**CLICK, **changed}, CLICK]}
        )
        assert answer.status_code == 422
        assert fault in answer.text
    assert rows(tmp_path) == []


async def test_without_a_folder_the_route_says_which_setting_is_missing() -> None:
    async with served(None) as service:
        answer = await service.client.post("/v1/feedback", json={"events": [CLICK]})
    assert answer.status_code == 404
    assert "ASTROLABE_FEEDBACK_DIR" in answer.json()["detail"]


@pytest.mark.parametrize(("texts", "text"), [(False, None), (True, "whale")])
async def test_answers_are_logged_with_texts_only_where_asked_for(
    tmp_path: Path, texts: bool, text: str | None
) -> None:
    async with served(tmp_path, feedback_answers_share=1.0, feedback_texts=texts) as service:
        answer = await service.recommend({"query": ["whale", "a ship"], "k": 2})
    first, second = rows(tmp_path, "answers")
    result = answer.json()["results"][1]["labels"]
    assert first["text"] == text
    assert first["request_id"] == answer.headers["x-request-id"]
    assert (second["query"], second["label_ids"]) == (1, [label["id"] for label in result])
    assert second["scores"] == pytest.approx([label["score"] for label in result])


async def test_no_answer_is_logged_by_default(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        await service.recommend({"query": "whale"})
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_refuses_events_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = log(tmp_path)
    assert events.append([ROW], 10)
    events.flush()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    assert events.append([ROW], 10)
    with monkeypatch.context() as patch:
        patch.setattr("service.feedback.row_log.os.write", full)
        with pytest.raises(OSError, match="No space"):
            events.flush()
        assert not events.append([ROW], 10)
    events.flush()
    assert events.append([ROW], 10)
    events.close()
    assert len(rows(tmp_path)) == 3


async def test_a_service_with_a_full_disk_answers_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as service:
        monkeypatch.setattr(row_log, "MAX_WAITING_BYTES", 0)
        answer = await service.client.post("/v1/feedback", json={"events": [CLICK]})
        assert answer.status_code == 503
        assert answer.json()["code"] == "feedback_unavailable"
        assert (await service.recommend({"query": "whale"})).status_code == 200


def test_files_roll_by_size_and_by_age(tmp_path: Path) -> None:
    clock = FakeClock()
    by_age, by_size = log(tmp_path / "age", clock=clock), log(tmp_path / "size", max_bytes=1)
    for each in (by_age, by_size):
        each.folder.mkdir()
        each.append([ROW], 10)
        each.flush()
    assert len(rows(tmp_path / "size")) == 1
    assert rows(tmp_path / "age") == []
    clock.advance(61)
    by_age.flush()
    assert len(rows(tmp_path / "age")) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.support.row_logs import ROW, log
events = log(Path(sys.argv[1]))
for _ in range(3):
    events.append([ROW] * 10, 10)
    events.flush()
events.append([ROW], 10)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("cut_bytes", [0, 7, 400])
def test_a_killed_process_leaves_what_it_flushed(tmp_path: Path, cut_bytes: int) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (part,) = tmp_path.glob("*.part")
    os.truncate(part, part.stat().st_size - cut_bytes)
    log(tmp_path).recover()
    assert len(rows(tmp_path)) == (30 if cut_bytes == 0 else 20)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("n_bytes", [0, 5, 300])
def test_a_part_without_rows_is_removed(tmp_path: Path, n_bytes: int) -> None:
    (tmp_path / "events-1.part").write_bytes(EVENTS.serialize().to_pybytes()[:n_bytes])
    log(tmp_path).recover()
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    living = log(tmp_path)
    living.append([ROW], 10)
    living.flush()
    log(tmp_path).recover()
    assert len(list(tmp_path.glob("*.part"))) == 1
    living.close()
    assert len(rows(tmp_path)) == 1


def test_the_schemas_are_those_of_the_docs() -> None:
    text = Path("docs/learning-loop.md").read_text(encoding="utf-8")
    for schema in (EVENTS, ANSWERS):
        for field in schema:
            assert f"| `{field.name}` | {_shown(field.type)} |" in text


def _shown(kind: pa.DataType) -> str:
    return str(kind).replace("item: ", "").replace("<", " of ").replace(">", "")

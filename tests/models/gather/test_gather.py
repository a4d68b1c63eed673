"""From stored feedback to the next data set, by the real command."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array

from models.__main__ import main
from models.data.dataset import Dataset, LabelCatalogue, Points
from models.data.formats import open_dataset, write_dataset
from service.feedback.schemas import ANSWERS, EVENTS

LABELS = ["L0", "L1", "L2"]


def event(text: str | None, label: str, kind: str, time: int = 0, **more: Any) -> dict[str, Any]:
    row = dict.fromkeys(EVENTS.names) | {"time": time, "query": 0, "text": text, "label_id": label}
    return row | {"event": kind} | more


def write(folder: Path, events: list[dict[str, Any]], answers: Any = ()) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(events, EVENTS), folder / "events-1.parquet")
    if answers:
        rows = [dict.fromkeys(ANSWERS.names) | answer for answer in answers]
        pq.write_table(pa.Table.from_pylist(rows, ANSWERS), folder / "answers-1.parquet")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Data with one training point, `old` with L0, and one test point, `test` with L1."""

    def points(text: str, label: int) -> Points:
        row = csr_array(([1.0], ([0], [label])), shape=(1, 3), dtype="float32")
        return Points([""], [text], [""], row)

    labels = LabelCatalogue(LABELS, ["zero", "one", "two"], [""] * 3)
    data = Dataset("old", points("old", 0), points("test", 1), labels, None, None, "")
    write_dataset(tmp_path / "old", data)
    return tmp_path / "old"


def gathered(tmp_path: Path, events: Any, *options: str, answers: Any = ()) -> Dataset:
    write(tmp_path / "feedback", events, answers)
    arguments = ["gather", "--feedback", str(tmp_path / "feedback")]
    arguments += ["--data", str(tmp_path / "old"), "--out", str(tmp_path / "new"), *options]
    assert main(arguments) == 0
    return open_dataset(tmp_path / "new")


def labels_of(points: Points | None) -> dict[str, set[str]]:
    assert points is not None
    rows = points.labels.toarray() > 0
    return {
        text: {LABELS[i] for i in row.nonzero()[0]}
        for text, row in zip(points.titles, rows, strict=True)
    }


@pytest.mark.parametrize(
    ("events", "options", "labels"),
    [
        pytest.param([("accepted", {})], [], {"L1"}, id="accepted"),
        pytest.param([("clicked", {})], [], {"L1"}, id="clicked"),
        pytest.param([("shown", {})] * 9, [], None, id="shown alone says nothing"),
        pytest.param([("rejected", {})], [], None, id="rejected"),
        pytest.param([("accepted", {}), ("rejected", {})], [], None, id="taken back"),
        pytest.param([("accepted", {})] * 2 + [("rejected", {})], [], {"L1"}, id="two against one"),
        pytest.param([("clicked", {})], ["--clicked", "0.1"], None, id="a lower weight"),
        pytest.param([("clicked", {})], ["--min-weight", "1"], None, id="a higher bar"),
        pytest.param([("clicked", {"value": 2.0})], ["--min-weight", "1"], {"L1"}, id="own value"),
        pytest.param([("accepted", {}), ("rejected", {"value": 0.1})], [], {"L1"}, id="a bit"),
        pytest.param(
            [("clicked", {"position": 4})], ["--min-weight", "2"], {"L1"}, id="far down counts more"
        ),
        pytest.param(
            [("clicked", {"position": 4})],
            ["--min-weight", "2", "--clip", "3"],
            None,
            id="up to the clip",
        ),
        pytest.param(
            [("clicked", {"position": 4})],
            ["--min-weight", "2", "--position-bias", "0"],
            None,
            id="no bias",
        ),
        pytest.param(
            [("clicked", {"request_id": "r"})] * 3, ["--min-weight", "1"], None, id="sent again"
        ),
    ],
)
def test_events_become_labels_by_their_weight(
    tmp_path: Path, old: Path, events: Any, options: list[str], labels: set[str] | None
) -> None:
    rows = [event("whale", "L1", kind, **more) for kind, more in events]
    train = labels_of(gathered(tmp_path, rows, *options).train)
    assert train.get("whale") == labels
    assert train["old"] == {"L0"}


def test_an_estimated_bias_weighs_by_shares_of_clicks(tmp_path: Path, old: Path) -> None:
    shown = [event("x", "L0", "shown", position=p) for p in (1, 2) for _ in range(200)]
    clicks = [event("x", "L0", "clicked", position=1)] * 80
    clicks += [event("whale", "L1", "clicked", position=2)] * 20
    options = ("--position-bias", "estimate", "--min-weight")
    # Position 2 has a quarter of the clicks: 20 clicks of 0.5 count four times.
    train = labels_of(gathered(tmp_path, shown + clicks, *options, "39.9").train)
    assert train["whale"] == {"L1"}
    assert "x" in train


def test_texts_come_from_the_log_of_answers(
    tmp_path: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [{"request_id": "r", "query": q, "text": t} for q, t in enumerate(("a", "b"))]
    rows = [event(None, "L2", "accepted", request_id="r", query=1)]
    rows += [event(None, "L2", "accepted", request_id="elsewhere")]
    assert labels_of(gathered(tmp_path, rows, answers=answers).train)["b"] == {"L2"}
    assert "1  events without a text" in capsys.readouterr().out


def test_the_newest_texts_are_held_out_and_old_test_points_stay(
    tmp_path: Path, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [event(f"t{time}", "L2", "accepted", time) for time in (5, 9, 1, 7)]
    rows += [event("test", "L0", "accepted", 99), event("t1", "nobody", "accepted")]
    new = gathered(tmp_path, rows, "--test-share", "0.5")
    assert labels_of(new.test) == {"test": {"L1"}, "t7": {"L2"}, "t9": {"L2"}}
    assert set(labels_of(new.train)) == {"old", "t1", "t5"}
    assert "1  events of unknown labels" in capsys.readouterr().out


def test_a_known_text_gets_further_labels(tmp_path: Path, old: Path) -> None:
    new = gathered(tmp_path, [event("old", "L2", "accepted")], "--test-share", "1")
    assert labels_of(new.train) == {"old": {"L0", "L2"}}


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [("other.txt", b"", "events-*.parquet"), ("events-1.parquet", b"no", "events-1.parquet")],
)
def test_a_folder_without_feedback_is_named(
    tmp_path: Path,
    old: Path,
    name: str,
    content: bytes,
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    paths = ["--feedback", str(tmp_path), "--data", str(old), "--out", str(tmp_path / "new")]
    assert main(["gather", *paths]) == 1
    assert fault in capsys.readouterr().err

"""The command line as a person uses it: exit codes, files, sentences, Ctrl-C."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.result import Result
from tests.support.fake_service import answer, fake_service, refused_url

QUICK = [
    *("--rate", "600", "--seconds", "1", "--no-ceiling"),
    *("--p99-ms", "30000", "--timeout-ms", "30000"),  # a busy machine meets both
]


def test_run_writes_its_results_and_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    with fake_service() as service:
        code = main(["run", "--url", service.url, "--out", str(out), *QUICK])
    assert code == 0
    result = Result.read(out)
    assert result.ok
    assert result.server_info == {"bundle_id": "abc", "device": "cpu"}
    assert result.answer_step is not None
    assert result.answer_step.outcomes == {"ok": len(service.bodies)}
    assert (out / "report.html").is_file()
    assert "VALID: 600/s holds" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["run", *QUICK], ["saturate"]])
def test_a_service_that_is_not_there_ends_the_test_at_once(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main([*arguments, "--url", refused_url(), "--out", str(out)]) == 2
    assert "Nothing listens on 127.0.0.1" in capsys.readouterr().err
    assert not out.exists()


SECRET = "sesame-of-the-test"
SEARCH = ["--start-rate", "500", "--max-rate", "500", "--seconds-per-step", "1", "--no-ceiling"]


@pytest.mark.parametrize(
    "arguments", [["run", *QUICK], ["saturate", "--p99-ms", "1500", *SEARCH]], ids=["run", "search"]
)
def test_a_key_and_headers_go_with_every_request_and_into_no_file(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("SERVICE_KEY", SECRET)
    out = tmp_path / "out"
    headers = ["--header", f"X-Token: {SECRET}", "--header", "X-Bundle: canary"]
    with fake_service() as service:
        url = ["--url", service.url, "--out", str(out), "--api-key-env", "SERVICE_KEY"]
        assert main([*arguments, *url, *headers]) == 0
    info = [head for head in service.looks if "/v1/info" in head]
    assert service.heads
    assert info
    for head in [*service.heads, *info]:
        assert f"\r\nAuthorization: Bearer {SECRET}\r\n" in head
        assert f"\r\nX-Token: {SECRET}\r\nX-Bundle: canary\r\n" in head.replace(
            f"Authorization: Bearer {SECRET}\r\n", ""
        )
    assert SECRET not in "".join(capsys.readouterr())
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_the_worker_has_the_key_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERVICE_KEY", SECRET)
    command = [sys.executable, "-m", "loadtest", "run", "--rate", "100", "--seconds", "60"]
    where = ["--out", str(tmp_path / "out"), "--api-key-env", "SERVICE_KEY"]
    with (
        fake_service() as service,
        subprocess.Popen([*command, *where, "--url", service.url]) as process,
    ):
        assert service.asked.wait(30)
        lines = [command_line(path) for path in Path("/proc").glob("[0-9]*")]
        process.kill()
    assert any("loadtest.worker" in line for line in lines)
    assert not any(SECRET in line for line in lines)


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""  # it has ended meanwhile


def test_one_error_fails_a_run_unless_it_is_allowed(tmp_path: Path):
    def refuse_the_fifth(number: int, body: dict[str, object]) -> bytes:
        return answer(503 if number == 5 else 200)

    codes = []
    for allowed in ("0", "0.01"):
        with fake_service(refuse_the_fifth) as service:
            arguments = ["run", "--url", service.url, "--out", str(tmp_path / allowed), *QUICK]
            codes.append(main([*arguments, "--seconds", "1.5", "--max-error-rate", allowed]))
    assert codes == [1, 0]


def test_saturate_finds_max_rate_of_a_quick_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    search = ["--start-rate", "500", "--max-rate", "1000", "--seconds-per-step", "1"]
    with fake_service() as service:
        arguments = ["saturate", "--url", service.url, "--p99-ms", "1500", "--no-ceiling"]
        code = main([*arguments, *search, "--out", str(out)])
    assert code == 0
    result = Result.read(out)
    assert [step.rate_asked for step in result.steps] == [500, 1000, 1000]
    assert result.answer == "03-confirm"
    assert "--max-rate was reached" in capsys.readouterr().out


def test_ceiling_needs_no_service(tmp_path: Path):
    search = ["--start-rate", "500", "--max-rate", "1000", "--seconds-per-step", "1"]
    assert main(["ceiling", "--p99-ms", "1500", *search, "--out", str(tmp_path / "out")]) == 0
    result = Result.read(tmp_path / "out")
    assert result.ceiling is not None
    assert result.ceiling.rate == 1000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--rate", "200000", "--seconds", "60"], "the cap is 2,000,000"),
        (["run", "--rate", "10", "--url", "nowhere"], "give it as http://host:port"),
        (["run", "--rate", "100", "--queries", "gone.txt"], "gone.txt cannot be read"),
        (["run", "--rate", "100", "--queries", "/dev/zero"], "/dev/zero is not a regular file"),
        (["run", "--rate", "0.001", "--seconds", "2"], "too few queries"),
        (["run", "--rate", "100", "--seconds", "0.01"], "too few queries"),
        (["run", "--rate", "50", "--seconds", "9"], "--seconds to 10."),
        (["run", "--rate", "1e-308"], "too few queries"),
        (["saturate", "--start-rate", "0.001"], "less than the first step takes"),
        (["run", "--rate", "100", "--header", "nothing"], "--header number 1 is not of the form"),
        (["saturate", "--api-key-env", "NOT_SET"], "NOT_SET, which is not set"),
        (["saturate", "--start-rate", "9", "--max-rate", "5"], "is above --max-rate"),
        (["saturate", "--tolerance", "0"], "--tolerance is 0"),
        (["saturate", "--max-seconds", "3"], "less than the first step takes"),
        (["saturate", "--max-rate", "9e9"], "the cap is 2,000,000"),
    ],
)
def test_bad_usage_is_a_sentence_and_exit_code_2(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()


def test_results_are_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "result.json").write_text("precious")
    with fake_service() as service:
        arguments = ["run", "--rate", "100", "--url", service.url, "--out", str(tmp_path)]
        assert main(arguments) == 2
    assert "name a new folder" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_text() == "precious"


def test_ctrl_c_ends_cleanly_and_takes_the_worker_along(tmp_path: Path):
    command = [sys.executable, "-m", "loadtest", "run", "--rate", "100", "--seconds", "60"]
    with (
        fake_service() as service,
        subprocess.Popen(
            [*command, "--url", service.url, "--out", str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert service.asked.wait(30)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert errors == "Stopped.\n"
        assert service.all_closed.wait(30)  # the worker held the connections


def test_a_killed_parent_leaves_no_worker_behind(tmp_path: Path):
    command = [sys.executable, "-m", "loadtest", "run", "--rate", "100", "--seconds", "60"]
    with (
        fake_service() as service,
        subprocess.Popen(
            [*command, "--url", service.url, "--out", str(tmp_path / "out")]
        ) as process,
    ):
        assert service.asked.wait(30)
        process.kill()
        assert service.all_closed.wait(30)

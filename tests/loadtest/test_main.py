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


def test_a_service_that_is_not_there_is_an_invalid_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(["run", "--url", refused_url(), "--out", str(out), *QUICK]) == 1
    step = Result.read(out).steps[0]
    assert step.outcomes == {"refused": step.n_queries}
    assert "INVALID" in capsys.readouterr().out


def test_one_error_fails_a_run_unless_it_is_allowed(tmp_path: Path):
    def refuse_the_fifth(number: int, body: dict[str, object]) -> bytes:
        return answer(503 if number == 5 else 200)

    codes = []
    for allowed in ("0", "0.01"):
        with fake_service(refuse_the_fifth) as service:
            arguments = ["run", "--url", service.url, "--out", str(tmp_path / allowed), *QUICK]
            codes.append(main([*arguments, "--seconds", "1.5", "--max-error-rate", allowed]))
    assert codes == [1, 0]


def test_too_few_queries_make_an_invalid_run_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with fake_service() as service:
        arguments = ["run", "--url", service.url, "--out", str(tmp_path / "out"), *QUICK]
        assert main([*arguments, "--rate", "50"]) == 1
    assert "too few queries" in " ".join(capsys.readouterr().out.split())


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
        (["run", "--rate", "10", "--queries", "gone.txt"], "gone.txt cannot be read"),
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
    assert main(["run", "--rate", "10", "--out", str(tmp_path)]) == 2
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

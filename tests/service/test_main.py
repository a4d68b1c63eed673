"""The service as a process: what an operator sees when it starts, fails to start, and stops."""

import json
import os
import resource
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.support.faults import frozen
from tests.support.processes import START_S, run_service, service_process

BODY = json.dumps({"query": "the white whale", "k": 3})


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_bundle_that_is_not_there_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    done = run_service("--bundle", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert last_line(done.stderr).startswith(f"python -m service: {tmp_path} holds neither")
    assert "Traceback" not in done.stderr


def test_auto_without_a_gpu_serves_and_says_so_without_a_warning(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides a GPU where there is one
    with service_process(tiny_bundle, "--device", "auto") as service:
        said = [entry["message"] for entry in service.entries]
        assert "device auto found no GPU: the encoder runs on the CPU" in said
        assert {entry["level"] for entry in service.entries} == {"info"}


def test_taken_port_is_one_sentence_and_exit_code_1(tiny_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_service("--bundle", str(tiny_bundle), "--port", port)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in last_line(done.stderr)
    assert "Traceback" not in done.stderr


def test_batch_budget_below_max_tokens_is_refused_at_start(tiny_bundle: Path) -> None:
    done = run_service("--bundle", str(tiny_bundle), "--port", "0", ASTROLABE_MAX_BATCH_TOKENS="8")
    assert done.returncode == 1
    assert "max_batch_tokens (8) is below the bundle's max_tokens (32)" in last_line(done.stderr)


def test_variant_that_the_bundle_lacks_is_refused_at_start(tiny_bundle: Path) -> None:
    done = run_service(
        "--bundle", str(tiny_bundle), "--port", "0", ASTROLABE_ENCODER_VARIANT="int8"
    )
    assert done.returncode == 1
    assert f"variant int8 was asked for, {tiny_bundle} has fp32" in last_line(done.stderr)
    assert "Traceback" not in done.stderr


def test_unknown_variable_is_refused_at_start() -> None:
    done = run_service("--bundle", "b", ASTROLABE_PROT="1")
    assert done.returncode == 1
    assert done.stderr == (
        "python -m service: ASTROLABE_PROT is not a setting; the closest one is ASTROLABE_PORT "
        "(docs/configuration.md lists all)\n"
    )


@pytest.mark.slow
def test_sigterm_under_load_is_red_first_finishes_everything_and_exits_0(tiny_bundle: Path) -> None:
    arguments = ("--drain-delay-s", "1", "--api-key", "sesame-key", "--log-requests", "none")
    with service_process(tiny_bundle, *arguments) as service:
        assert "sesame-key" not in json.dumps(service.entries)
        red = threading.Event()
        outcomes: list[int | str] = []

        def load() -> None:
            # what a load balancer does: send until readiness turns red, then send elsewhere
            while not red.is_set():
                try:
                    outcomes.append(service.ask("GET", "/livez"))
                    outcomes.append(service.ask("POST", "/v1/recommend", BODY))
                except OSError as exc:
                    outcomes.append(repr(exc))

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        while len(outcomes) < 50:
            assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        while service.ask("GET", "/readyz") == 200:
            pass
        answered_after_red = service.ask("GET", "/livez")
        red.set()
        for client in clients:
            client.join()
        service.process.wait(START_S)
    assert answered_after_red == 200
    assert set(outcomes) == {200, 401}  # the load carries no key; every request got its answer
    assert service.process.returncode == 0


@pytest.mark.slow
def test_sigint_twice_stops_at_once_with_exit_code_0(tiny_bundle: Path) -> None:
    with service_process(tiny_bundle, "--drain-delay-s", "600") as service:
        assert service.ask("POST", "/v1/recommend", BODY) == 200
        service.process.send_signal(signal.SIGINT)
        while service.ask("GET", "/readyz") == 200:
            pass
        service.process.send_signal(signal.SIGINT)
        service.process.wait(START_S)
    assert service.process.returncode == 0


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_two_workers_count_together_replace_a_dead_one_and_end_together(tiny_bundle: Path) -> None:
    arguments = ("--workers", "2", "--device", "cpu", "--drain-delay-s", "0")
    with service_process(tiny_bundle, *arguments) as service:
        service.wait_for("serving")
        assert {entry.get("worker") for entry in service.entries[1:]} == {0, 1}
        for _ in range(20):
            assert service.ask("POST", "/v1/recommend", BODY) == 200
        answered = 'astrolabe_effort_total{point="balanced"}'
        while service.scrape().get(answered, 0.0) < 20:  # a worker shows the others its own late
            pass
        os.kill(children(service.process.pid)[0], signal.SIGKILL)
        service.wait_for("serving")
        assert service.ask("POST", "/v1/recommend", BODY) == 200
        while service.scrape()[answered] < 21:
            pass
        seen = service.scrape()
        assert seen["astrolabe_worker_restarts_total"] == 1
        assert seen["astrolabe_workers"] == 2
        assert seen["process_resident_memory_bytes"] > 1 << 24
        assert not [name for name in seen if "internal" in name]
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(START_S) == 0


def no_byte_to_any_file() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.slow
def test_workers_need_no_disk(tiny_bundle: Path) -> None:
    arguments = ("--workers", "2", "--device", "cpu", "--drain-delay-s", "0")
    with service_process(tiny_bundle, *arguments, preexec_fn=no_byte_to_any_file) as service:
        for _ in range(20):
            assert service.ask("POST", "/v1/recommend", BODY) == 200
        answered = 'astrolabe_effort_total{point="balanced"}'
        while service.scrape().get(answered, 0.0) < 20:
            pass
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(START_S) == 0


@pytest.mark.slow
def test_a_frozen_worker_is_replaced_and_counted(tiny_bundle: Path) -> None:
    arguments = ("--workers", "2", "--device", "cpu", "--drain-delay-s", "0")
    with service_process(tiny_bundle, *arguments, "--worker-silence-s", "3") as service:
        service.wait_for("serving")
        with frozen(children(service.process.pid)[0]):
            service.wait_for("a worker does not answer: killed")
            service.wait_for("serving")
        assert service.ask("POST", "/v1/recommend", BODY) == 200
        seen = service.scrape()
        assert seen["astrolabe_worker_hangs_total"] == 1
        assert seen["astrolabe_worker_restarts_total"] == 1


@pytest.mark.slow
def test_workers_whose_master_was_killed_drain_and_end(tiny_bundle: Path) -> None:
    arguments = ("--workers", "2", "--device", "cpu", "--drain-delay-s", "0")
    with service_process(tiny_bundle, *arguments) as service:
        service.wait_for("serving")
        service.process.kill()
        for _ in range(2):
            service.wait_for("the master process has died: this worker drains and ends")
        assert service.process.stderr is not None
        service.process.stderr.read()  # ends where no process holds it any more
        with pytest.raises(ConnectionRefusedError):
            service.ask("GET", "/livez")


@pytest.mark.slow
def test_metrics_on_a_port_of_their_own_are_there_and_nowhere_else(tiny_bundle: Path) -> None:
    port = free_port()
    with service_process(
        tiny_bundle, "--metrics-port", str(port), "--drain-delay-s", "0"
    ) as service:
        service.wait_for("serving metrics")
        assert service.ask("GET", "/metrics") == 404
        assert service.ask("GET", "/readyz") == 200
        assert service.scrape(port)["astrolabe_queue_tokens"] == 0
        service.port = port
        assert service.ask("GET", "/readyz") == 200
        assert service.ask("GET", "/v1/info") == 404
        assert service.ask("POST", "/v1/recommend", BODY) == 404

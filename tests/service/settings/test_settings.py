from pathlib import Path

import pytest

from service.errors import SettingsInvalid
from service.settings.settings import Settings, flag_of, load_settings, variable_of
from tests.support.fakes import fake_settings

ADAPTIVE = ["--bundle", "b", "--adaptive-effort", "true"]


def keys_file(folder: Path, text: str = "# who may ask\n\nweb=one\nbatch=two\n") -> Path:
    path = folder / "keys"
    path.write_text(text)
    return path


def test_flag_wins_over_variable_and_variable_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTROLABE_BUNDLE", "from-environment")
    monkeypatch.setenv("ASTROLABE_PORT", "9001")
    settings = load_settings(["--port", "9002"])
    assert (settings.bundle, settings.port, settings.max_k) == (Path("from-environment"), 9002, 100)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_has_a_variable_and_a_flag(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {
        "adaptive_effort": "true",
        "host": "::1",
        "device": "cpu",
        "log_level": "debug",
        "log_format": "text",
    }
    values |= {"log_requests": "all", "log_queries": "true", "api_key": "secret", "bundle": "b"}
    values |= {"max_queue_tokens": "99999", "request_timeout_max_ms": "99999"}
    values |= {"api_keys": "team=key", "cors_origins": "https://a.example"}
    values |= {"api_keys_file": str(keys_file(tmp_path)), "max_header_bytes": "2048"}
    values |= {"gpu_memory_mb": "512", "cuda_graphs": "true"}
    values |= {"tls_certfile": __file__, "tls_keyfile": __file__}
    values |= {"live_recall_share": "0.5", "otel_sample_ratio": "0.5"}
    values |= {"otel_endpoint": "http://collector:4318"}
    monkeypatch.setenv("ASTROLABE_STATE_DIR", "default")
    monkeypatch.setenv("ASTROLABE_FEEDBACK_DIR", "default")
    values |= {"feedback_answers_share": "0.5", "feedback_texts": "true"}
    values |= {"bulk_queue_share": "0.7"}
    value = values.get(name, "7")
    monkeypatch.setenv("ASTROLABE_BUNDLE", "default")
    # what other settings cannot do without
    monkeypatch.setenv("ASTROLABE_ADMIN_KEY", "admin-key")
    monkeypatch.setenv("ASTROLABE_TLS_CERTFILE", str(keys_file(tmp_path)))
    default = load_settings([])
    by_flag = load_settings([flag_of(name), value])
    monkeypatch.setenv(variable_of(name), value)
    by_variable = load_settings([])
    assert by_flag == by_variable != default


@pytest.mark.parametrize(
    ("name", "closest"),
    [("ASTROLABE_PROT", "ASTROLABE_PORT"), ("astrolabe_max_kk", "ASTROLABE_MAX_K")],
)
def test_unknown_variable_is_refused_and_the_closest_named(
    name: str, closest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsInvalid, match=f"{name} is not a setting.* {closest} "):
        load_settings(["--bundle", "b"])


def test_empty_variable_or_flag_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTROLABE_API_KEY", "")
    monkeypatch.setenv("ASTROLABE_PORT", "")
    settings = load_settings(["--bundle", "b", "--max-k", ""])
    assert (settings.api_key, settings.port, settings.max_k) == (None, 8000, 100)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "bundle is required: set ASTROLABE_BUNDLE or give --bundle"),
        (["--bundle", "b", "--port", "x"], r"ASTROLABE_PORT \(--port\): .*valid integer"),
        (["--bundle", "b", "--device", "tpu"], r"ASTROLABE_DEVICE .*'auto', 'cuda'"),
        (["--bundle", "b", "--max-queue-tokens", "9"], r"max_queue_tokens \(9\) is below"),
        (["--bundle", "b", "--request-timeout-ms", "99999"], "request_timeout_max_ms"),
        ([*ADAPTIVE, "--adaptive-clear-ms", "20"], r"adaptive_clear_ms \(20\) is not below"),
        ([*ADAPTIVE, "--batch-wait-ms", "5"], r"batch_wait_ms \(5\) is not below"),
        ([*ADAPTIVE, "--request-timeout-ms", "20"], r"adaptive_target_ms \(20\) is not below"),
        ([*ADAPTIVE, "--adaptive-hold-s", "0.2"], r"adaptive_hold_s \(0.2\) .* to 0.25"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(SettingsInvalid, match=sentence):
        load_settings(arguments)


def test_settings_of_adaptive_effort_do_not_matter_where_it_is_off() -> None:
    assert fake_settings(batch_wait_ms=50.0, adaptive_clear_ms=30.0).adaptive_effort is False


def test_key_of_no_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="api_key"):
        fake_settings(api_key="")


def test_unknown_flag_ends_like_any_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--bundle", "b", "--prot", "1"])
    assert "--prot" in capsys.readouterr().err


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        fake_settings().port = 1


def test_secrets_are_masked_where_settings_are_shown() -> None:
    settings = fake_settings(api_key="sesame")
    assert "sesame" not in repr(settings)
    assert "sesame" not in str(settings.public())


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_keys_come_from_all_three_settings_by_name(tmp_path: Path) -> None:
    settings = fake_settings(
        api_key="zero", api_keys="a=b=c, x.y=z", api_keys_file=keys_file(tmp_path)
    )
    keys = {"default": "zero", "a": "b=c", "x.y": "z", "web": "one", "batch": "two"}
    assert settings.named_keys() == keys


def test_a_byte_order_mark_is_no_part_of_a_key_file(tmp_path: Path) -> None:
    settings = fake_settings(api_keys_file=keys_file(tmp_path, "\ufeffweb=one\n\n"))
    assert settings.named_keys() == {"web": "one"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"api_keys": "nameless"}, "entry 1: expected name=key"),
        ({"api_keys": "a=b,=secret"}, "entry 2: expected name=key"),
        ({"api_keys": "a=one,a=two"}, "the name a is taken"),
        ({"api_keys": "admin=one"}, "the name admin is taken"),
        ({"api_keys": "a=same,b=same"}, "two names have the same key"),
        ({"api_keys": "a=same", "admin_key": "same"}, "two names have the same key"),
        ({"api_keys": "a=with space"}, "entry 1: expected name=key"),
        ({"api_keys_file": "/nowhere"}, "/nowhere cannot be read"),
        ({"admin_port": 9000}, "admin_port is set without admin_key"),
        ({"cors_origins": "example.org"}, "'example.org' is no origin"),
        ({"cors_origins": "https://a.example/path"}, "is no origin"),
        ({"tls_certfile": "/nowhere.pem"}, "there is no file /nowhere.pem"),
        ({"tls_keyfile": __file__}, "without tls_certfile"),
    ],
)
def test_faults_at_the_edge_are_named_without_showing_a_key(
    values: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTROLABE_BUNDLE", "b")
    for name, value in values.items():
        monkeypatch.setenv(variable_of(name), str(value))
    with pytest.raises(SettingsInvalid) as refusal:
        load_settings([])
    assert words in refusal.value.detail
    assert "secret" not in refusal.value.detail


def test_a_fault_in_the_keys_file_is_named_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 3: expected name=key") as refusal:
        fake_settings(api_keys_file=keys_file(tmp_path, "# keys\na=b\njust-a-key\n"))
    assert "just-a-key" not in str(refusal.value.errors()[0]["msg"])  # type: ignore[attr-defined]


def test_no_key_is_in_what_is_logged_at_start(tmp_path: Path) -> None:
    settings = fake_settings(
        api_key="k-one",
        api_keys="a=k-two",
        admin_key="k-three",
        tls_certfile=__file__,
        tls_keyfile=__file__,
        tls_keyfile_password="k-four",
    )
    assert "k-" not in str(settings.public())
    assert "k-" not in repr(settings)


def test_graphs_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="cuda_graphs does not go with device tensorrt"):
        fake_settings(device="tensorrt", cuda_graphs=True)

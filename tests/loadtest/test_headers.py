"""Headers of the command line: which are taken, and that no message shows a value."""

import pytest

from loadtest.errors import UsageError
from loadtest.headers import for_worker, of_worker, read_headers


def test_headers_and_a_key_reach_the_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY", "sesame")
    headers = read_headers(["X-Bundle: canary", "X-Empty-Space:a b "], "KEY")
    assert headers == {
        "X-Bundle": "canary",
        "X-Empty-Space": "a b",
        "Authorization": "Bearer sesame",
    }
    for name, value in for_worker(headers).items():
        monkeypatch.setenv(name, value)
    assert of_worker() == headers
    assert of_worker() == {}


def test_an_empty_variable_means_no_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY", "")
    assert read_headers([], "KEY") == {}


@pytest.mark.parametrize(
    ("lines", "key", "complaint"),
    [
        (["secret"], None, "--header number 1 is not of the form"),
        (["X-A: b", ": secret"], None, "--header number 2"),
        (["X-A:"], None, "--header number 1"),
        (["X A: secret"], None, "--header number 1"),
        (["X-A: secret\r\nX-B: c"], None, "--header number 1"),
        (["X-A: secret\x00"], None, "--header number 1"),
        (["X-A: secret\u20ac"], None, "--header number 1"),
        (["Host: secret"], None, "sets the header Host itself"),
        (["content-length: secret"], None, "sets the header content-length itself"),
        (["X-A: secret", "x-a: secret"], None, "x-a is given twice"),
        (["authorization: secret"], "k", "Authorization is given twice"),
        ([], "secret\nX-A: b", "KEY holds no key"),
        ([], "secret ", "KEY holds no key"),
    ],
)
def test_what_is_no_header_is_refused_without_showing_it(
    lines: list[str], key: str | None, complaint: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KEY", key or "")
    with pytest.raises(UsageError, match=complaint) as refusal:
        read_headers(lines, "KEY")
    assert "secret" not in str(refusal.value)

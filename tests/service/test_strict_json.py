"""Strict JSON: what programs would read differently is refused with its place, the rest is read."""

import json
import random
from typing import Any

import pytest

from service.strict_json import MAX_NESTING, MAX_WHOLE, NotJson, outside_strings, parse

DEEP = b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1)
BROAD = b'{"text": "a: b", "more": [{}, {}], '
"""A beginning that the short way past the full check does not take."""


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'{"a": 1, "a": 2}', "the name 'a' stands twice in one object"),
        (b'{"a": 1, "\\u0061": 2}', "the name 'a' stands twice in one object"),
        (b'{"x": {"b": 1, "b": 1}}', "x: the name 'b' stands twice"),
        (b'{"x": [0, {"y": {"b": 1, "b": 1}}]}', "x[1].y: the name 'b' stands twice"),
        (b'{"a": ":", "a": 2}', "the name 'a' stands twice"),
        (BROAD + b'"\\"": 1, "\\"": 2}', "the name '\"' stands twice"),
        (b'{"a": NaN}', "NaN is not a number of JSON: line 1 column 7"),
        (b'{"a": -Infinity}', "Infinity is not a number of JSON: line 1 column 8"),
        (b'{"a":\n [Infinity]}', "Infinity is not a number of JSON: line 2 column 3"),
        (b'{"a": 1e999}', "number is infinity when parsed as double: line 1 column 7"),
        (b'{"a": 9223372036854775808}', "a: the whole number 9223372036854775808 is too large"),
        (b'{"a": [0, -9223372036854775808]}', "a[1]: the whole number -9223372036854775808"),
        (b'{"a": 18446744073709551616}', "a: the whole number 18446744073709551616 is too large"),
        (BROAD + b'"a": 18446744073709551616}', "a: the whole number 18446744073709551616"),
        (b'{"a": ' + b"9" * 200 + b"}", "a: the whole number 9999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number is infinity"),
        (b'{"a": "\\ud800"}', "surrogate in string: line 1 column"),
        (b'{"\\udfff": 1}', "surrogate in string: line 1 column 3"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8 (0xff)"),
        (b'{"a": "\xed\xa0\x80"}', "byte 7 is not UTF-8"),
        (b"\x1f\x8b\x08\x00", "byte 1 is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "a byte order mark"),
        (b'{"a":' + DEEP + b"}", "nested over 32 deep"),
        (BROAD + b'"a":' + DEEP + b"}", "nested over 32 deep"),
        (b"[" * 1000 + b"]" * 1000, "nested over 32 deep"),
        (b"[" * 1_000_000, "nested over 32 deep: line 1 column"),
        (b'{"a": 1} {', "line 1 column 10"),
        (b'{"a": 1,}', "line 1 column 8"),
        (b'{"a": 01}', "line 1 column"),
        (b"{'a': 1}", "line 1 column 2"),
        (b'{"a": "\n"}', "line 1 column 8"),
        (b"", "empty"),
    ],
)
def test_what_programs_would_read_differently_is_refused_with_its_place(
    raw: bytes, sentence: str
) -> None:
    with pytest.raises(NotJson) as refusal:
        parse(raw)
    assert sentence in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "raw",
    [
        b"null",
        b'"a: {b"',
        b' {"a": 1e0000000000000000000000004}',
        b"1e0000000000000000000000004",
        b'{"a": 0.00012345678901234567, "b": [0.1234567890123456789012345678901234567890123]}',
        b'{"text": "12345678901234567890", "12345678901234567890": 9223372036854775807}',
        b'{"a": {"b": 1}, "c": {"b": 1}}',
        b'{"a:": "{\\"a\\": 1, \\"a\\": 2}", "b": ["\\\\", "\\\\\\":"]}',
        b"[" * MAX_NESTING + b"1" + b"]" * MAX_NESTING,
        '{"π": [1, -9223372036854775807, 0.5, "日本"], "deep": [[[{"x": null}]]]}'.encode(),
    ],
)
def test_ordinary_documents_come_back_whole(raw: bytes) -> None:
    assert parse(raw) == json.loads(raw)


def test_the_short_way_takes_what_the_full_check_takes() -> None:
    """Pieces of JSON in any order, beside Python's own parser with a hook for each rule."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    def whole(digits: str) -> int:
        if abs(int(digits)) >= MAX_WHOLE:
            raise ValueError("too large")
        return int(digits)

    pieces = ['"a"', '"b:"', '"\\\\"', '"{"', ":", ",", "{", "}", "[", "]", "1", "9" * 20]
    draw, n_taken = random.Random(1), 0
    for _ in range(30_000):
        raw = "{" + "".join(draw.choices(pieces, k=draw.randint(0, 9))) + "}"
        try:
            value = json.loads(raw, object_pairs_hook=once, parse_int=whole)
        except ValueError:
            with pytest.raises(NotJson):
                parse(raw.encode())
        else:
            n_taken += 1
            assert parse(raw.encode()) == value
    assert n_taken > 100


@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        (b'{"a": "b"}', b"{: }"),
        (b'["\\\\", ":", "\\":", "\\\\\\":"]', b"[, , , ]"),
        (b"[1, 2]", b"[1, 2]"),
    ],
)
def test_what_stands_outside_of_strings(raw: bytes, rest: bytes) -> None:
    assert outside_strings(raw) == rest

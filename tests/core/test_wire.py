# SPDX-License-Identifier: Apache-2.0
"""The readers of untrusted values return a plain value or none, whatever the service has sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_luma.core.wire import (
    MAX_DEPTH,
    plain_text,
    read_integer,
    read_json,
    read_object,
    read_retry_after,
    read_strings,
    read_text,
    read_time,
)

#: When a header came.
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)

#: Any value that JSON can hold.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


class TestReadInteger:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [(0, 0), (7, 7), (-1, -1), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), ("7", 7), ("-7", -7), ("007", 7)],
        ids=str,
    )
    def test_integer_may_be_a_number_or_its_text(self, value, expected):
        assert read_integer(value) == expected

    @pytest.mark.parametrize(
        "value",
        [None, True, False, 1.0, 1.5, "", " 7", "7\n", "+7", "1_000", "1.0", "1e3", "٣", "9" * 19, [7], {"a": 7}],
        ids=repr,
    )
    def test_what_is_no_integer_is_none(self, value):
        assert read_integer(value) is None

    @pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400], ids=["too large", "too small", "huge"])
    def test_integer_beyond_64_bits_is_none(self, value):
        assert read_integer(value) is None


class TestReadJson:
    """JSON becomes values that msgpack, strict UTF-8 and PostgreSQL take."""

    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            (r'"half \ud83d, NUL \u0000, whole \ud83d\ude00"', "half \ufffd, NUL \ufffd, whole 😀"),
            (b'"\xed\xa0\xbd"', "\ufffd" * 1),
            (r'{"\ud83d": ["\u0000"]}', {"\ufffd": ["\ufffd"]}),
            ("[NaN, Infinity, -Infinity, 1e999, 1.5]", [None, None, None, None, 1.5]),
            (f"[{2**63 - 1}, {2**63}, {-(2**63)}, {-(2**63) - 1}]", [2**63 - 1, None, -(2**63), None]),
            (f'{{"a": {"9" * 5000}, "b": 1}}', {"a": None, "b": 1}),
            ("null", None),
            ("", None),
            ("{", None),
        ],
        ids=lambda value: ascii(value)[:60],
    )
    def test_value_that_some_serialiser_refuses_is_replaced_or_absent(self, document, expected):
        assert read_json(document) == expected

    def test_what_is_nested_deeper_than_the_limit_is_absent(self):
        value, depth = read_json("[" * (MAX_DEPTH + 9) + "]" * (MAX_DEPTH + 9)), 0
        while value is not None:
            (value,), depth = value, depth + 1
        assert depth == MAX_DEPTH

    def test_nesting_without_end_is_none(self):
        assert read_json("[" * 1_000_000) is None


def test_plain_text_is_left_as_it_is():
    assert plain_text("\x01 ä 雨 😀 \ufffd") == "\x01 ä 雨 😀 \ufffd"


class TestReadObject:
    @pytest.mark.parametrize("value", [{"a": 1}, '{"a": 1}', ' {"a": 1}\n'], ids=repr)
    def test_object_may_be_json_in_a_string(self, value):
        assert read_object(value) == {"a": 1}

    def test_json_in_a_string_becomes_plain_values_too(self):
        assert read_object(r'{"a": "\ud83d\u0000", "b": NaN}') == {"a": "\ufffd\ufffd", "b": None}

    @pytest.mark.parametrize(
        "value",
        [None, "", "null", "[]", "{", "not json", [], 5, True, pytest.param("[" * 100_000, id="nested without end")],
    )
    def test_what_is_no_object_is_empty(self, value):
        assert read_object(value) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ("a", ("a",)),
        ([None, "", 5, ["a"], "b"], ("b",)),
        ([], ()),
        ("", ()),
        (None, ()),
        (5, ()),
        ({"a": "b"}, ()),
    ],
    ids=str,
)
def test_list_of_texts_or_a_single_text_is_read_without_what_is_no_text(value, expected):
    assert read_strings(value) == expected


@pytest.mark.parametrize(("value", "expected"), [("a", "a"), ("", ""), (None, None), (5, None), (["a"], None)], ids=str)
def test_what_is_no_text_is_none(value, expected):
    assert read_text(value) == expected


class TestReadTime:
    @pytest.mark.parametrize(
        ("milliseconds", "expected"),
        [
            (1755599634000, datetime(2025, 8, 19, 10, 33, 54, tzinfo=UTC)),
            (1755599634250, datetime(2025, 8, 19, 10, 33, 54, 250000, tzinfo=UTC)),
            ("1755599634000", datetime(2025, 8, 19, 10, 33, 54, tzinfo=UTC)),
        ],
    )
    def test_milliseconds_become_a_utc_time(self, milliseconds, expected):
        assert read_time(milliseconds) == expected

    @pytest.mark.parametrize(
        "value",
        [None, 0, "", "yesterday", True, 1.5, 10**30, -(10**30), pytest.param(10**400, id="too large")],
    )
    def test_what_no_calendar_holds_is_none(self, value):
        assert read_time(value) is None


class TestReadRetryAfter:
    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            (None, None),
            ("7", 7.0),
            (" 7 ", 7.0),
            ("0", 0.0),
            ("1.5", 1.5),
            ("", None),
            ("-3", None),
            ("soon", None),
            ("inf", None),
            ("nan", None),
            ("1e9", None),
            ("٣", None),
            pytest.param("9" * 400, None, id="too long"),
        ],
    )
    def test_header_is_a_number_of_seconds(self, header, seconds):
        assert read_retry_after(header, NOW) == seconds

    @pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
    @pytest.mark.parametrize(("ahead", "seconds"), [(90, 90.0), (0, 0.0), (-3600, 0.0)])
    def test_header_may_be_the_date_until_which_to_wait(self, form, ahead, seconds):
        header = (NOW + timedelta(seconds=ahead)).strftime(form)
        assert read_retry_after(header, NOW) == seconds

    @pytest.mark.parametrize(
        "header", ["Mon, 32 Mar 2026 12:00:00 GMT", "Mon, 02 Mar 99999 12:00:00 GMT", "Mon, 02 Mar", "1, 2 3 4 5 6"]
    )
    def test_header_with_an_impossible_date_is_none(self, header):
        assert read_retry_after(header, NOW) is None

    @given(st.none() | st.text())
    def test_any_header_gives_seconds_from_now_or_none(self, header):
        seconds = read_retry_after(header, NOW)
        assert seconds is None or seconds >= 0


@given(json_values | st.just(float("nan")))
def test_any_json_value_gives_a_plain_value_or_none(value):
    assert type(read_integer(value)) in (int, type(None))
    assert isinstance(read_object(value), dict)
    assert all(isinstance(text, str) and text for text in read_strings(value))
    assert type(read_text(value)) in (str, type(None))
    time = read_time(value)
    assert time is None or time.tzinfo is UTC


@given(json_values)
def test_any_json_value_written_into_a_string_gives_an_object_or_an_empty_one(value):
    read = read_object(json.dumps(value))
    assert set(read) == (set(map(plain_text, value)) if isinstance(value, dict) else set())

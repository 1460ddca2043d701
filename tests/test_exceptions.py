# SPDX-License-Identifier: Apache-2.0
"""The errors: one tree, Luma's code and message on each, and a form in which they cross processes."""

from __future__ import annotations

import copy
import html
import json
import pickle
import time
from urllib.parse import quote

import pytest

from airflow_provider_luma import exceptions
from airflow_provider_luma.exceptions import (
    PERMANENT,
    TRANSIENT,
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaInsufficientCreditsError,
    LumaJobLimitError,
    LumaKeyLimitError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaRequestFailedError,
    LumaResultMissingError,
    LumaSubmissionUnknownError,
    LumaTimeoutError,
    LumaUnavailableError,
    LumaValidationError,
)

KINDS = [
    LumaError,
    LumaAuthError,
    LumaInsufficientCreditsError,
    LumaJobLimitError,
    LumaKeyLimitError,
    LumaNotFoundError,
    LumaValidationError,
    LumaRateLimitError,
    LumaUnavailableError,
    LumaFeatureDisabledError,
    LumaGenerationError,
    LumaRequestFailedError,
    LumaResultMissingError,
    LumaTimeoutError,
    LumaSubmissionUnknownError,
]


def test_every_error_of_the_package_is_a_luma_error():
    defined = {kind for kind in vars(exceptions).values() if getattr(kind, "__module__", None) == exceptions.__name__}
    assert {kind for kind in defined if isinstance(kind, type)} == set(KINDS)
    assert all(issubclass(kind, LumaError) for kind in KINDS)


def test_validation_error_is_also_a_value_error():
    assert issubclass(LumaValidationError, ValueError)


def test_transient_and_permanent_errors_are_as_documented():
    assert set(TRANSIENT) == {LumaRateLimitError, LumaUnavailableError}
    assert set(PERMANENT) == {LumaAuthError, LumaNotFoundError, LumaValidationError, LumaFeatureDisabledError}


@pytest.mark.parametrize("kind", KINDS)
def test_error_carries_code_message_task_id_and_retry_after(kind):
    error = kind(455, "under maintenance", luma_task_id="abc", retry_after=7.0)
    assert (error.code, error.msg, error.luma_task_id, error.retry_after) == (455, "under maintenance", "abc", 7.0)
    assert "under maintenance" in str(error)
    assert "455" in str(error)
    assert "abc" in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_an_error_without_a_code_mentions_no_code(kind):
    assert "None" not in str(kind(None, "broken"))
    assert "code" not in str(kind(None, "broken")).lower()


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        (LumaAuthError, "API key"),
        (LumaAuthError, "luma_conn_id"),
        (LumaInsufficientCreditsError, "Top up"),
        (LumaSubmissionUnknownError, "log page"),
        (LumaSubmissionUnknownError, "billed"),
    ],
    ids=str,
)
def test_error_that_a_person_can_resolve_says_how(kind, hint):
    assert hint in str(kind(None, "it went wrong"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [None, 401])
@pytest.mark.parametrize("luma_task_id", [None, "abc"])
def test_error_survives_being_written_as_json(kind, code, luma_task_id):
    error = kind(code, "why", luma_task_id=luma_task_id, retry_after=3.0)
    arrived = LumaError.from_dict(json.loads(json.dumps(error.as_dict())))
    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert (arrived.code, arrived.msg, arrived.luma_task_id) == (code, "why", luma_task_id)


def test_error_of_an_unknown_type_is_read_as_a_luma_error():
    arrived = LumaError.from_dict({"type": "LumaNewError", "code": 1, "msg": "why", "luma_task_id": "abc"})
    assert type(arrived) is LumaError
    assert arrived.msg == "why"


class TestTexts:
    """The texts of an error may come from anywhere, and go into logs, events, XComs and pages."""

    def test_lone_surrogate_and_nul_are_replaced(self):
        error = LumaError(500, "half \ud83d, NUL \x00", luma_task_id="\udcff")
        assert (error.msg, error.luma_task_id) == ("half \ufffd, NUL \ufffd", "\ufffd")
        assert error.args == (500, "half \ufffd, NUL \ufffd")

    def test_long_message_is_cut_off(self):
        assert len(LumaError(None, "x" * 2000).msg) == 2000
        error = LumaError(None, "x" * 2001)
        assert len(error.msg) == 2000
        assert error.msg.endswith("x…")

    @pytest.mark.parametrize(("code", "kept"), [(10**30, None), (True, None), (1.5, None), ("402", 402), (-1, -1)])
    def test_code_is_an_integer_of_64_bits_or_none(self, code, kept):
        assert LumaError(code, "why").code == kept

    @pytest.mark.parametrize(
        "form",
        [
            "https://b.example.com/clip.mp4?{query}",
            "https://b.example.com/a clip.mp4?{query}",
            "https://b.example.com/it's.mp4?{query}",
            r"https:\/\/b.example.com\/clip.mp4?{query}",
            "/clip.mp4?{query}",
            "…p4?a=b&{query}",
            "{query}",
            "cannot read '{query}'",
        ],
    )
    @pytest.mark.parametrize(
        "query",
        [
            "X-Amz-Expires=600&X-Amz-Security-Token=S3CRET%2FS3CRET&X-Amz-Signature=S3CRET",
            "X-Goog-Date=1&X-Goog-Signature=S3CRET&X-Goog-Expires=5",
            "sig=S3CRET%3D&se=2026-12-01",
            "Expires=1&Signature=S3CRET&Key-Pair-Id=K",
        ],
    )
    @pytest.mark.parametrize(
        "written",
        [
            str,
            lambda text: quote(text, safe=""),
            lambda text: quote(quote(text, safe=""), safe=""),
            html.escape,
            json.dumps,
            lambda text: text.replace("&", r"\u0026").replace("=", r"\u003d"),
        ],
        ids=["plain", "percent", "twice percent", "html", "json", "json escapes"],
    )
    def test_signature_of_an_address_is_left_out_in_whatever_form(self, form, query, written):
        assert "S3CRET" not in LumaError(422, f"no {written(form.format(query=query))} there").msg

    @pytest.mark.parametrize("repeated", ["https://", "https://a?", "https://a?x-amz-x ", "?", "signature=", "%25"])
    def test_text_that_is_made_to_take_long_takes_no_time(self, repeated):
        before = time.thread_time()
        LumaError(500, repeated * (256 * 1024 // len(repeated)))
        assert time.thread_time() - before < 2

    @pytest.mark.parametrize(
        ("msg", "shown"),
        [
            ("407 from 'http://user:secret@proxy:8080'", "407 from 'http://proxy:8080'"),
            (f"no https://e.com/?token={'0a' * 32}&x=1", "no https://e.com/"),
            (f"no https%3A%2F%2Fe.com%2F%3Ftoken%3D{'0a' * 32}", "no https%3A%2F%2Fe.com%2F%3Ftoken%3D***"),
            ("https://user@host/a@b, socks5://u:p%40@[::1]:1/", "https://host/a@b, socks5://[::1]:1/"),
            ("//u:p@rt@host?x=a@b", "//host?x=a@b"),
            ("write to me@example.com or https://example.com", "write to me@example.com or https://example.com"),
            ("https://user:secret@" + "x" * 3000, "https://" + "x" * 1991 + "…"),
        ],
        ids=lambda text: text[:30],
    )
    def test_user_and_password_of_an_address_are_left_out(self, msg, shown):
        error = LumaError(407, msg)
        assert error.msg == shown
        assert "secret" not in str(error) + repr(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_error_survives_being_copied_and_pickled(kind, copied):
    error = copied(kind(500, "why", luma_task_id="abc", retry_after=3.0))
    assert type(error) is kind
    assert (error.code, error.msg, error.luma_task_id, error.retry_after) == (500, "why", "abc", 3.0)

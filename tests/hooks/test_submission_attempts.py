# SPDX-License-Identifier: Apache-2.0
"""LumaHook submits again only where the service surely accepted nothing; an unknown outcome is never sent again."""

from __future__ import annotations

import threading

import pytest
import requests

from airflow_provider_luma import backoff
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaFeatureDisabledError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks.luma import LumaHook
from tests.support.calls import submissions
from tests.support.tls import server_context

PROMPT = "make it a rainy night"
VIDEO = "http://127.0.0.1/v.mp4"


def warnings(task_log) -> list[str]:
    return [entry["event"] for entry in task_log if entry["log_level"] == "warning"]


def test_accepted_submission_is_sent_once_and_returns_the_id(luma, luma_conn):
    luma_task_id = LumaHook().modify_video(PROMPT, luma.sample_url, watermark="mine")
    (job,) = luma.jobs
    assert job.task_id == luma_task_id
    assert job.request == {"prompt": PROMPT, "videoUrl": luma.sample_url, "watermark": "mine"}
    assert len(submissions(luma)) == 1


class TestInvalidRequests:
    """What the service can only refuse is not sent."""

    @pytest.mark.parametrize(
        ("arguments", "parameter"),
        [
            (("", VIDEO), "prompt"),
            (("сделай дождь", VIDEO), "prompt"),
            ((PROMPT, "ftp://example.com/v.mp4"), "video_url"),
            ((PROMPT, "https://example.com/v.webm"), "video_url"),
        ],
    )
    def test_invalid_prompt_or_video_url_is_not_sent(self, luma, luma_conn, arguments, parameter):
        with pytest.raises(LumaValidationError, match=parameter):
            LumaHook().modify_video(*arguments)
        assert luma.calls == []

    def test_invalid_callback_url_is_not_sent(self, luma, luma_conn):
        with pytest.raises(LumaValidationError, match="callback_url"):
            LumaHook().modify_video(PROMPT, luma.sample_url, callback_url="example.com")
        assert luma.calls == []

    @pytest.mark.parametrize("parameter", ["video_url", "callback_url"])
    def test_private_address_is_refused_for_the_public_service(self, monkeypatch, parameter):
        monkeypatch.setenv("AIRFLOW_CONN_LUMA_DEFAULT", "luma://:some-long-key@")
        arguments = {"video_url": "https://example.com/v.mp4", parameter: "http://192.168.0.1/x"}
        with pytest.raises(LumaValidationError, match=parameter):
            LumaHook().modify_video(PROMPT, **arguments)


class TestRefusals:
    @pytest.mark.parametrize("style", ["status", "body"])
    @pytest.mark.parametrize("code", [429, 455])
    def test_enveloped_transient_refusal_is_submitted_again_with_a_warning(
        self, luma, luma_conn, short_backoff, task_log, code, style
    ):
        luma.configure(faults=[f"submit:refuse,code={code},style={style},times=2"])
        LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 3
        assert luma.accepted == 1
        assert len(warnings(task_log)) == 2
        assert all(str(code) in message for message in warnings(task_log))

    def test_retry_after_is_waited_for(self, luma, luma_conn, short_backoff):
        luma.configure(faults=["submit:refuse,code=429,style=status,retry_after=0.4,times=1"])
        LumaHook().modify_video(PROMPT, luma.sample_url)
        first, second = submissions(luma)
        assert 0.4 <= second.at - first.at < 2

    def test_retry_after_beyond_the_retry_timeout_is_raised_at_once(self, luma, luma_conn):
        luma.configure(faults=["submit:refuse,code=429,style=status,retry_after=200"])
        with pytest.raises(LumaRateLimitError) as caught:
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert caught.value.retry_after == 200
        assert len(submissions(luma)) == 1

    @pytest.mark.parametrize("style", ["status", "body"])
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (401, LumaAuthError),
            (402, LumaInsufficientCreditsError),
            (404, LumaNotFoundError),
            (422, LumaValidationError),
            (505, LumaFeatureDisabledError),
        ],
    )
    def test_refusal_that_a_retry_cannot_change_is_sent_once(self, luma, luma_conn, code, kind, style):
        luma.configure(faults=[f"submit:refuse,code={code},style={style}"])
        with pytest.raises(kind) as caught:
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert type(caught.value) is kind
        assert caught.value.code == code
        assert len(submissions(luma)) == 1

    def test_account_without_enough_credits_is_told_its_balance(self, luma, luma_conn):
        luma.configure(credits=5, cost=10)
        with pytest.raises(LumaInsufficientCreditsError, match="balance is 5"):
            LumaHook().modify_video(PROMPT, luma.sample_url)


class TestRedirects:
    """A redirect is never followed with a submission, whatever the connection allows: it could be delivered twice."""

    @pytest.mark.parametrize("status", [301, 303, 307])
    @pytest.mark.parametrize("target_answers", [True, False], ids=["to a service that answers", "to a closed port"])
    def test_redirected_submission_is_sent_once_and_unknown(
        self, wires, set_connection, free_port, status, target_answers
    ):
        target = wires.start(wires.envelope(200, {"taskId": "abc"}))
        location = target.base_url if target_answers else f"http://127.0.0.1:{free_port}"
        wire = wires.start(wires.answer(status, headers={"Location": location}))
        set_connection(wire.base_url, allow_redirects=True)
        with pytest.raises(LumaSubmissionUnknownError, match="redirects"):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert (len(wire.received), len(target.received)) == (1, 0)


class TestNeverConnected:
    """Without a connection nothing was sent: the service is unavailable, and the outcome is known."""

    def test_connection_that_was_refused_is_tried_again(
        self, wires, set_connection, free_port, short_backoff, monkeypatch, task_log, until
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 20)
        set_connection(f"http://127.0.0.1:{free_port}")

        def listen_after_the_first_attempt() -> None:
            until(lambda: warnings(task_log))
            wires.start(wires.envelope(200, {"taskId": "abc"}), port=free_port)

        service = threading.Thread(target=listen_after_the_first_attempt)
        service.start()
        assert LumaHook().modify_video(PROMPT, VIDEO) == "abc"
        service.join()
        assert len(wires.started[0].received) == 1

    @pytest.mark.parametrize("kind", ["refused TLS", "plain HTTP"])
    def test_failed_tls_handshake_is_no_unknown_outcome(self, wires, set_connection, certificates, monkeypatch, kind):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.1)
        wire = wires.start(tls=server_context(certificates) if kind == "refused TLS" else None)
        set_connection(wire.base_url.replace("http://", "https://"))
        with pytest.raises(LumaUnavailableError, match="could not be reached"):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert wire.received == []

    @pytest.mark.parametrize("proxy", ["http://:-1", "nonsense://127.0.0.1:1", "socks5://127.0.0.1:1"])
    def test_unusable_proxy_is_no_unknown_outcome(self, wires, set_connection, monkeypatch, proxy):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.1)
        wire = wires.start()
        set_connection(wire.base_url, proxies={"http": proxy})
        with pytest.raises((LumaUnavailableError, LumaValidationError)):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert wire.received == []


class TestUnknownOutcomes:
    @pytest.mark.parametrize("after_accept", [True, False], ids=["accepted", "not accepted"])
    @pytest.mark.parametrize("kind", ["cut", "html", "html,code=502", "html,code=504", "empty", "truncated"])
    def test_lost_answer_makes_the_outcome_unknown_and_is_not_sent_again(self, luma, luma_conn, kind, after_accept):
        luma.configure(faults=[f"submit:{kind}{',after_accept' if after_accept else ''}"])
        with pytest.raises(LumaSubmissionUnknownError) as caught:
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 1
        assert luma.accepted == int(after_accept)
        assert "log page" in str(caught.value)

    @pytest.mark.parametrize("kind", ["null_data", "wrong_data", "cut_body", "wrong_length"])
    def test_unreadable_acceptance_makes_the_outcome_unknown_and_is_not_sent_again(self, luma, luma_conn, kind):
        luma.configure(faults=[f"submit:{kind},after_accept"])
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 1

    @pytest.mark.parametrize("after_accept", [True, False], ids=["accepted", "not accepted"])
    def test_timeout_makes_the_outcome_unknown_and_is_not_sent_again(self, luma, set_connection, after_accept):
        set_connection(luma.base_url, timeout=0.5)
        luma.configure(faults=[f"submit:hang,seconds=20{',after_accept' if after_accept else ''}"])
        requests.get(luma.sample_url, timeout=20)  # it is drawn when it is first asked for
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert len(submissions(luma)) == 1

    def test_answer_lost_by_a_proxy_makes_the_outcome_unknown_and_is_not_sent_again(
        self, wires, set_connection, monkeypatch
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 3)
        proxy = wires.start(wires.answer(cut=True))
        set_connection("http://luma.example.com:80", proxies={"http": proxy.base_url})
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, "https://example.com/v.mp4")
        assert len(proxy.received) == 1

# SPDX-License-Identifier: Apache-2.0
"""LumaHook submits again only where the service surely accepted nothing; an unknown outcome is never sent again."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import requests

from airflow_provider_luma.core import backoff
from airflow_provider_luma.core.job import ModifyRequest
from airflow_provider_luma.exceptions import (
    LumaAuthError,
    LumaError,
    LumaFeatureDisabledError,
    LumaInsufficientCreditsError,
    LumaNotFoundError,
    LumaRateLimitError,
    LumaSubmissionUnknownError,
    LumaUnavailableError,
    LumaValidationError,
)
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.transport import workers
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
            ((f"{PROMPT} \ud83d", VIDEO), "prompt"),
            ((PROMPT, f"{VIDEO}?\ud83d"), "video_url"),
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

    def test_retry_after_is_waited_for(self, luma, luma_conn, short_backoff, monkeypatch):
        luma.configure(faults=["submit:refuse,code=429,style=status,retry_after=7,times=1"])
        slept: list[float] = []
        monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=slept.append))
        LumaHook().modify_video(PROMPT, luma.sample_url)
        assert slept == [7]
        assert len(submissions(luma)) == 2

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

    @pytest.mark.parametrize(
        ("code", "status"), [(422, 400), (402, 403), (455, 429), (505, 505), (505, 400), (455, 201)]
    )
    def test_refusal_under_another_4xx_or_2xx_status_is_no_unknown_outcome(
        self, wires, set_connection, monkeypatch, code, status
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.1)
        set_connection(wires.start(wires.envelope(code, status=status)).base_url)
        with pytest.raises(LumaError) as caught:
            LumaHook().modify_video(PROMPT, VIDEO)
        assert not isinstance(caught.value, LumaSubmissionUnknownError)
        assert caught.value.code == code

    def test_account_without_enough_credits_is_told_its_balance(self, luma, luma_conn):
        luma.configure(credits=5, cost=10)
        with pytest.raises(LumaInsufficientCreditsError, match="balance is 5"):
            LumaHook().modify_video(PROMPT, luma.sample_url)


class TestRedirects:
    """A redirect is never followed with a submission, whatever the connection allows: it could be delivered twice."""

    @pytest.mark.parametrize(("allowed", "max_redirects"), [(True, 10), (False, 10), (False, 0)])
    @pytest.mark.parametrize("status", [302, 303, 307])
    @pytest.mark.parametrize(
        "target",
        ["a service that answers", "a closed port", "/elsewhere", "http://[::1", "http://e.com:port/", "http://"],
    )
    def test_redirected_submission_is_sent_once_and_unknown(
        self, wires, set_connection, free_port, status, target, allowed, max_redirects
    ):
        service = wires.start(wires.envelope(200, {"taskId": "abc"}))
        locations = {"a service that answers": service.base_url, "a closed port": f"http://127.0.0.1:{free_port}"}
        wire = wires.start(wires.answer(status, headers={"Location": locations.get(target, target)}))
        set_connection(wire.base_url, allow_redirects=allowed, max_redirects=max_redirects)
        with pytest.raises(
            LumaSubmissionUnknownError, match=r"\) is a redirect: the address in the connection redirects"
        ):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert (len(wire.received), len(service.received)) == (1, 0)


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

    def test_host_that_is_no_name_is_no_unknown_outcome(self, set_connection, monkeypatch):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.1)
        set_connection("http://luma..example.com:80")
        with pytest.raises(LumaUnavailableError, match="could not be reached"):
            LumaHook().modify_video(PROMPT, "https://example.com/v.mp4")

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

    @pytest.mark.parametrize("replaced_by", [None, "no certificate"], ids=["removed", "overwritten"])
    @pytest.mark.parametrize("option", ["verify", "cert"])
    def test_certificate_file_that_is_lost_after_the_check_is_no_unknown_outcome(
        self, wires, set_connection, certificates, tmp_path, option, replaced_by
    ):
        wire = wires.start(tls=server_context(certificates))
        file = tmp_path / "certificate.pem"
        file.write_bytes((certificates / "client.pem").read_bytes())
        set_connection(wire.base_url, **{"verify": str(certificates / "authority.crt"), option: str(file)})
        client, request = LumaHook().get_client(), ModifyRequest(PROMPT, VIDEO)
        client.check_request(request)
        file.write_text(replaced_by) if replaced_by else file.unlink()
        with pytest.raises(LumaValidationError, match="cannot be read on this machine"):
            client.submit(request, "a-reference")
        assert wire.received == []


class TestUnknownOutcomes:
    @pytest.mark.parametrize(
        ("code", "status"),
        [
            *[(500, 200), (500, 500), (500, 504), (501, 200), (501, 501), (501, 400), (503, 200), (503, 503)],
            *[(422, 504), (422, 500), (429, 502), (429, 503), (401, 301), (455, 500), (505, 502)],
        ],
    )
    def test_5xx_with_an_envelope_makes_the_outcome_unknown_and_is_not_sent_again(
        self, wires, set_connection, short_backoff, code, status
    ):
        wire = wires.start(wires.envelope(code, status=status))
        set_connection(wire.base_url)
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert len(wire.received) == 1

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_accepted_submission_that_is_answered_with_a_redirect_is_sent_once(self, luma, set_connection, code):
        set_connection(luma.base_url, allow_redirects=True)
        luma.configure(faults=[f"submit:redirect,code={code},after_accept=true"])
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert (luma.accepted, len([call for call in luma.calls if call.on == "submit"])) == (1, 1)

    @pytest.mark.parametrize("style", ["status", "body"])
    @pytest.mark.parametrize("code", [408, 409, 499])
    def test_4xx_that_says_too_late_or_already_there_makes_the_outcome_unknown_and_is_not_sent_again(
        self, luma, luma_conn, short_backoff, monkeypatch, code, style
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 3)
        luma.configure(faults=[f"submit:refuse,code={code},style={style},after_accept"])
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, luma.sample_url)
        assert luma.accepted == 1

    @pytest.mark.parametrize("through", ["an edge", "a proxy"])
    @pytest.mark.parametrize("status", [413, 429, 500, 502, 503, 504, 520])
    def test_error_without_an_envelope_makes_the_outcome_unknown_and_is_not_sent_again(
        self, wires, set_connection, short_backoff, status, through
    ):
        wire = wires.start(wires.answer(status, b"<h1>no</h1>", headers={"Retry-After": "0"}))
        if through == "an edge":
            set_connection(wire.base_url)
        else:
            set_connection("http://luma.example.com:80", proxies={"http": wire.base_url})
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, "https://example.com/v.mp4")
        assert len(wire.received) == 1

    def test_answer_that_is_too_long_makes_the_outcome_unknown_and_is_not_sent_again(self, wires, set_connection):
        wire = wires.start(wires.envelope(200, {"remark": "x" * workers.MAX_BODY_SIZE, "taskId": "abc"}))
        set_connection(wire.base_url)
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert len(wire.received) == 1

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

    def test_http_client_that_breaks_after_the_request_makes_the_outcome_unknown(self, luma, luma_conn, monkeypatch):
        def broken(_response: object) -> bytes:
            raise RuntimeError("a defect of a library")

        monkeypatch.setattr("airflow_provider_luma.transport.workers.read_body", broken)
        with pytest.raises(LumaSubmissionUnknownError, match="a defect of a library"):
            LumaHook().get_client().submit(ModifyRequest(PROMPT, luma.sample_url), "a-reference")
        assert luma.accepted == 1

    def test_answer_with_two_lengths_makes_the_outcome_unknown_and_is_not_sent_again(
        self, wires, set_connection, monkeypatch
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 3)
        wire = wires.start(wires.answer(200, b'{"code": 200}', headers={"content-length": "12"}))
        set_connection(wire.base_url)
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert len(wire.received) == 1

    def test_tls_that_breaks_after_the_request_makes_the_outcome_unknown_and_is_not_sent_again(
        self, wires, set_connection, certificates, monkeypatch
    ):
        monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 3)
        garbage = b"HTTP/1.1 502 Bad Gateway\r\n\r\n"
        wire = wires.start(wires.answer(raw=garbage), tls=server_context(certificates))
        set_connection(wire.base_url, verify=str(certificates / "authority.crt"))
        with pytest.raises(LumaSubmissionUnknownError):
            LumaHook().modify_video(PROMPT, VIDEO)
        assert len(wire.received) == 1

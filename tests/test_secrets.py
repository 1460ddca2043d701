# SPDX-License-Identifier: Apache-2.0
"""The API key appears nowhere: not in logs, XComs, trigger arguments, events or exceptions, whatever happens."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import structlog
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import BaseOperator

from airflow_provider_luma.core import backoff, poll_state
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor
from airflow_provider_luma.transport.options import Certificates
from airflow_provider_luma.transport.triggerer import OpenConnection
from tests.support.task_instance import TaskInstance, TaskStateStore

pytestmark = [pytest.mark.slow, pytest.mark.versions]

FAULTS = {
    "nothing": {},
    # As an HTTP status and in the body, alternately.
    **{f"refuse {code}": {"faults": [f"submit:refuse,code={code}"]}
       for code in (401, 402, 404, 422, 429, 455, 500, 501, 505)},
    **{f"submit {kind}": {"faults": [f"submit:{kind}"]}
       for kind in ("html", "empty", "truncated", "cut", "null_data", "wrong_data", "hang,seconds=20")},
    **{f"status {kind}": {"faults": [f"status:{kind}"]}
       for kind in ("html", "empty", "truncated", "cut", "null_data", "unknown_flag", "refuse,code=401",
                    "refuse,code=404", "refuse,code=429", "hang,seconds=20")},
    **{f"file {kind}": {"faults": [f"file:{kind}"]} for kind in ("html", "cut")},
    **{outcome: {"outcome": outcome} for outcome in ("create_failed", "generate_failed", "callback_failed", "no_urls")},
    "no credits": {"credits": 0},
}  # fmt: skip


class AnyTaskInstance(TaskInstance):
    """A task instance for sensors too."""

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Returns all that was logged at any level, before Airflow masks what it knows to be secret."""
    from airflow.sdk._shared.secrets_masker.secrets_masker import SecretsMasker

    monkeypatch.setattr(SecretsMasker, "add_mask", lambda *_, **__: None)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.NOTSET)
    root = logging.getLogger()
    names = ("urllib3", "aiohttp", "asyncio", "airflow", "airflow_provider_luma", "requests")
    levels = {name: logging.getLogger(name).level for name in names}
    root_level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    with structlog.testing.capture_logs() as entries:
        yield lambda: [stream.getvalue(), *map(repr, entries)]
    root.removeHandler(handler)
    root.setLevel(root_level)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def texts_of(error: BaseException) -> list[str]:
    """Return all that an exception, and those it was raised from, can show."""
    chain, texts = error, []
    while chain is not None:
        texts += [str(chain), repr(chain), repr(chain.args), repr(vars(chain))]
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return [*texts, "".join(traceback.format_exception(error))]


async def run_pipeline(luma: Any, folder: Any, *, timeout: float = 0.05) -> list[str]:
    """Run a pipeline in every way, whatever comes of it, and return all that can be seen of it from outside."""
    texts: list[str] = []
    context: Any = {"ti": AnyTaskInstance()}
    options = {"prompt": "make it snow", "video_url": luma.sample_url, "poll_interval": 0.02, "timeout": timeout}

    async def attempt(task: BaseOperator, resume: Callable[..., Any] | None = None, *resumed: Any) -> Any:
        try:
            work = (resume, *resumed, context) if resume else (task.execute, context)
            outcome = await asyncio.to_thread(*work)
        except TaskDeferred as deferred:
            texts.append(repr(deferred.trigger.serialize()))
            texts.append(repr(deferred.trigger))
            (event,) = [event.payload async for event in deferred.trigger.run()]
            texts.append(repr(event))
            kwargs = {**(deferred.kwargs or {}), "event": event}
            return await attempt(task, task.resume_execution, deferred.method_name, kwargs)
        except Exception as error:
            texts.extend(texts_of(error))
            return None
        texts.append(repr(outcome))
        return outcome

    for deferrable in (True, False):
        context["task_state_store"] = TaskStateStore()
        operator = LumaModifyOperator(task_id="modify", deferrable=deferrable, **options)
        result = await attempt(operator)
        operator.on_kill()
        texts.append(repr(vars(operator)))
        texts.append(repr(vars(context["task_state_store"])))
    luma_task_id = context["ti"].pushed.get("luma_task_id", "nobody-knows")
    for deferrable in (True, False):
        sensor = LumaTaskSensor(
            task_id="wait", luma_task_id=luma_task_id, deferrable=deferrable, poke_interval=0.02, timeout=timeout
        )
        await attempt(sensor)
    hook = LumaHook()
    texts.append(repr(await asyncio.to_thread(hook.test_connection)))
    texts.append(repr(vars(hook)))
    urls = (result or {}).get("result_urls") or [f"{luma.base_url}/files/results/x/gone.mp4"]
    await attempt(LumaDownloadOperator(task_id="download", urls=urls, destination=str(folder)))
    texts.append(repr(context["ti"].pushed))
    assert not any(mistake in text for text in texts for mistake in ("AttributeError", "TypeError", "KeyError"))
    return texts


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch, short_backoff: None) -> None:
    monkeypatch.setattr(poll_state, "NOT_FOUND_GRACE", 0.03)
    monkeypatch.setattr(backoff, "FIRST_DELAY", 0.005)
    monkeypatch.setattr(backoff, "OUTAGE_TIMEOUT", 0.03)
    monkeypatch.setattr(backoff, "READ_RETRY_TIMEOUT", 0.03)


@pytest.mark.parametrize("fault", FAULTS)
async def test_api_key_is_shown_nowhere_whatever_the_service_does(
    luma, set_connection, api_key, logged, short_timeouts, tmp_path, fault
):
    set_connection(luma.base_url, requests_per_second=1000)
    await asyncio.to_thread(LumaHook().get_credits)
    await asyncio.to_thread(requests.get, luma.sample_url, timeout=20)  # it is drawn when it is first asked for
    if "hang" in fault:
        set_connection(luma.base_url, timeout=0.25)
    luma.configure(processing_seconds=0.02, **FAULTS[fault])
    waits_in_vain = fault.startswith(("refuse", "status"))
    texts = [*await run_pipeline(luma, tmp_path, timeout=0.05 if waits_in_vain else 20), *logged()]
    assert "make it snow" in "".join(texts)
    if fault == "nothing":
        assert any("'status': 'SUCCESS'" in text for text in texts)
    assert "/api/v1/chat/credit HTTP/1.1" in "".join(logged())
    assert [text for text in texts if api_key in text] == []
    assert [text for text in texts if api_key[3:-3] in text] == []


@pytest.mark.parametrize("status", [200, 302])
@pytest.mark.parametrize("code", [401, 422, 500])
async def test_api_key_that_the_service_repeats_is_shown_nowhere(
    wires, luma, set_connection, api_key, logged, short_timeouts, tmp_path, code, status
):
    echo = wires.envelope(code, api_key, f"Invalid key {api_key}", status=status)
    echo.headers["Location"] = f"http://e.com/?key={api_key}"
    set_connection(wires.start(echo).base_url)
    texts = [*await run_pipeline(luma, tmp_path), *logged()]
    assert "Invalid key ***" in "".join(texts)
    assert [text for text in texts if api_key in text] == []


def escaped(text: str) -> str:
    """Write each character of a text as an escape of JSON's."""
    return "".join(f"\\u{ord(character):04x}" for character in text)


ECHOES = {
    "instead of an HTTP answer": b"GET /api/v1 HTTP/1.1\r\nAuthorization: Bearer %(key)s\r\n\r\n",
    "as a header without a colon": b"HTTP/1.1 200 OK\r\nAuthorization Bearer %(key)s\r\nA: b\r\n\r\n{}",
    "as the name of a header": b"HTTP/1.1 200 OK\r\nBearer %(key)s : \r\nContent-Length: 2\r\n\r\n{}",
    "as the length of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nBearer %(key)s\r\n\r\n",
    "as the length of the body": b"HTTP/1.1 200 OK\r\nContent-Length: %(key)s\r\n\r\n{}",
    "as a coding": b"HTTP/1.1 200 OK\r\nContent-Encoding: %(key)s\r\nContent-Length: 2\r\n\r\n{}",
    "in the reason phrase": b"HTTP/1.1 403 Bearer %(key)s\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("echo", ECHOES)
async def test_api_key_that_a_server_which_is_no_luma_repeats_is_shown_nowhere(
    wires, luma, set_connection, api_key, logged, short_timeouts, tmp_path, echo
):
    wire = wires.start(wires.answer(raw=ECHOES[echo].replace(b"%(key)s", api_key.encode())))
    set_connection(wire.base_url)
    texts = [*await run_pipeline(luma, tmp_path), *logged()]
    assert wire.received
    assert [text for text in texts if api_key in text] == []


BODIES = {
    "with escapes": lambda key: f'{{"code": 500, "msg": "Invalid key {escaped(key)}", "data": null}}'.encode(),
    "with escapes, in a status": lambda key: (
        f'{{"code": 200, "msg": "", "data": {{"taskId": "nobody-knows", "successFlag": 3, "errorMessage": '
        f'"Invalid key {escaped(key[:4])}{key[4:]}"}}}}'
    ).encode(),
    "in UTF-16": lambda key: f'{{"code": 500, "msg": "Invalid key {key}", "data": null}}'.encode("utf-16"),
    "in UTF-32": lambda key: f'{{"code": 401, "msg": "Invalid key {key}", "data": null}}'.encode("utf-32-le"),
    "with escapes, cut off": lambda key: f'{{"code": 500, "msg": "Invalid key {escaped(key)}", "da'.encode(),
    "with escapes, in JSON in a text of JSON": lambda key: json.dumps(
        {
            "code": 200,
            "data": {
                "taskId": "nobody-knows",
                "successFlag": 1,
                "paramJson": f'{{"prompt": "{escaped(key)}"}}',
                "response": f'{{"resultUrls": ["https://example.com/{escaped(key)}.mp4"]}}',
            },
        }
    ).encode(),
    "with escapes, in deep lists": lambda key: (
        f'{{"code": 200, "msg": "{escaped(key)}", "data": {"[" * 900}{"]" * 900}}}'
    ).encode(),
    "in UTF-16, behind something else": lambda key: b"<p>" + key.encode("utf-16-be"),
    "in UTF-16, and no JSON": lambda key: f"Invalid key {key}".encode("utf-16"),
}


@pytest.mark.parametrize("body", BODIES)
async def test_api_key_that_the_service_repeats_in_another_form_is_shown_nowhere(
    wires, luma, set_connection, api_key, logged, short_timeouts, tmp_path, body
):
    set_connection(wires.start(wires.answer(body=BODIES[body](api_key))).base_url)
    texts = [*await run_pipeline(luma, tmp_path), *logged()]
    assert "repeats the API key" in "".join(texts)
    forms = (api_key, escaped(api_key), *(between.join(api_key) for between in ("\ufffd", "\0", "\\x00")))
    assert [text for text in texts for form in forms if form in text] == []


@pytest.mark.parametrize("gap", ["\n", "\r\n", " ", "ä"], ids=ascii)
async def test_api_key_that_no_header_can_carry_is_shown_nowhere(
    luma, set_connection, logged, short_timeouts, tmp_path, gap
):
    set_connection(luma.base_url, key=f"sk-distinctive{gap}0123456789")
    texts = [*await run_pipeline(luma, tmp_path), *logged()]
    assert [text for text in texts if "sk-distinctive" in text or "0123456789" in text] == []
    assert luma.calls == []


@pytest.mark.parametrize("verify", [True, False])
async def test_api_key_is_shown_nowhere_when_nothing_listens_at_the_address(
    luma, set_connection, free_port, api_key, logged, short_timeouts, tmp_path, verify
):
    set_connection(f"https://127.0.0.1:{free_port}", verify=verify)
    texts = [*await run_pipeline(luma, tmp_path), *logged()]
    assert [text for text in texts if api_key in text] == []


async def test_api_key_is_neither_shown_nor_sent_on_after_a_redirect_to_another_host(
    wires, luma, set_connection, api_key, logged, short_timeouts, tmp_path
):
    other = wires.start()
    wire = wires.start(wires.answer(307, headers={"Location": other.base_url.replace("127.0.0.1", "localhost")}))
    set_connection(wire.base_url, allow_redirects=True)
    texts = [*await run_pipeline(luma, tmp_path), *logged()]
    assert other.received
    assert [text for text in texts if api_key in text] == []
    assert [request for request in other.received if api_key in repr(request)] == []


@pytest.mark.parametrize("target", ["/again?key={key}", "/again/{key}", "http://{key}.invalid/", "{key}://e.com/"])
async def test_redirect_to_an_address_with_the_api_key_is_not_shown(
    wires, luma, set_connection, api_key, logged, short_timeouts, tmp_path, target
):
    """Of a host, HTTP clients write capitals small."""
    wire = wires.start(wires.answer(307, headers={"Location": target.format(key=api_key)}))
    set_connection(wire.base_url, allow_redirects=True)
    texts = [*await run_pipeline(luma, tmp_path), *logged()]
    assert wire.received
    assert [text for text in texts if api_key.lower() in text.lower()] == []


async def test_api_key_is_in_no_text_of_a_connection(luma, luma_conn, api_key):
    for connection in (LumaHook().get_luma_connection(), await LumaAsyncHook().get_luma_connection()):
        assert connection.api_key == api_key
        assert api_key not in repr(connection)
        assert api_key not in str(connection)
        assert api_key not in f"{connection}"


async def test_password_of_the_proxy_is_in_no_text_of_an_open_connection(luma, set_connection):
    """In the debug mode of asyncio, the result of a slow task is logged."""
    set_connection(luma.base_url, proxies={"http": "http://user:hidden-word@proxy.example.com:8080"})
    connection = await LumaAsyncHook().get_luma_connection()
    opened = await OpenConnection.open(connection, Certificates.of(connection))
    try:
        assert opened.proxy == "http://user:hidden-word@proxy.example.com:8080"
        assert "hidden-word" not in repr(opened)
    finally:
        await opened.session.close()

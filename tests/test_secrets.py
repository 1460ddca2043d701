# SPDX-License-Identifier: Apache-2.0
"""The API key appears nowhere: not in logs, XComs, trigger arguments, events or exceptions, whatever happens."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from typing import Any

import pytest
import structlog
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_luma import waiting
from airflow_provider_luma.hooks import luma as hooks
from airflow_provider_luma.hooks.luma import LumaAsyncHook, LumaHook
from airflow_provider_luma.operators.luma import LumaDownloadOperator, LumaModifyOperator
from airflow_provider_luma.sensors.luma import LumaTaskSensor

TROUBLE = {
    "nothing": {},
    # By turns as an HTTP status and in the body.
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


class TaskInstance:
    dag_id = "films"
    run_id = "manual__1"
    task_id = "modify"
    map_index = -1

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_first_reschedule_date(self, context: Any) -> None:
        return None


@pytest.fixture
def seen(monkeypatch):
    """Everything that anybody writes into a log at any level, before Airflow masks what it knows to be secret."""
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


def told_by(error: BaseException) -> list[str]:
    chain, told = error, []
    while chain is not None:
        told += [str(chain), repr(chain), repr(chain.args), repr(vars(chain))]
        chain = chain.__cause__ or chain.__context__
    return [*told, "".join(traceback.format_exception(error))]


async def tell_everything(luma: Any, folder: Any) -> list[str]:
    """Run a pipeline in every way, whatever comes of it, and return all that can be seen of it from outside."""
    told: list[str] = []
    context: Any = {"ti": TaskInstance()}
    options = {"prompt": "make it snow", "video_url": luma.sample_url, "poll_interval": 0.05, "timeout": 0.4}

    async def attempt(step: Any) -> Any:
        try:
            outcome = await asyncio.to_thread(step, context)
        except TaskDeferred as deferred:
            told.append(repr(deferred.trigger.serialize()))
            told.append(repr(deferred.trigger))
            events = [event.payload async for event in deferred.trigger.run()]
            told.extend(map(repr, events))
            return await attempt(lambda _: step.__self__.execute_complete(context, events[0]))
        except Exception as error:
            told.extend(told_by(error))
            return None
        told.append(repr(outcome))
        return outcome

    for deferrable in (True, False):
        operator = LumaModifyOperator(task_id="modify", deferrable=deferrable, **options)
        result = await attempt(operator.execute)
        operator.on_kill()
        told.append(repr(vars(operator)))
    luma_task_id = context["ti"].pushed.get("luma_task_id", "nobody-knows")
    for deferrable in (True, False):
        sensor = LumaTaskSensor(
            task_id="wait", luma_task_id=luma_task_id, deferrable=deferrable, poke_interval=0.05, timeout=0.2
        )
        await attempt(sensor.execute)
    hook = LumaHook()
    told.append(repr(await asyncio.to_thread(hook.test_connection)))
    told.append(repr(vars(hook)))
    urls = (result or {}).get("result_urls") or [f"{luma.base_url}/files/results/x/gone.mp4"]
    await attempt(LumaDownloadOperator(task_id="download", urls=urls, destination=str(folder)).execute)
    told.append(repr(context["ti"].pushed))
    return told


@pytest.fixture
def impatient(monkeypatch, short_pauses):
    monkeypatch.setattr(waiting, "NOT_FOUND_GRACE", 0.1)
    monkeypatch.setattr(hooks, "SUBMIT_PATIENCE", 0.1)
    monkeypatch.setattr(hooks, "READ_PATIENCE", 0.1)


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
async def test_the_key_is_nowhere(luma, set_connection, api_key, seen, impatient, tmp_path, trouble):
    set_connection(luma.base_url, timeout=0.4)
    await asyncio.to_thread(LumaHook().get_credits)
    luma.configure(**trouble)
    told = await tell_everything(luma, tmp_path)
    everything = [*told, *seen()]
    assert "make it snow" in "".join(everything)
    assert "/api/v1/chat/credit HTTP/1.1" in "".join(seen())
    assert [one for one in everything if api_key in one] == []
    assert [one for one in everything if api_key[3:-3] in one] == []


@pytest.mark.parametrize("gap", ["\n", "\r\n", " ", "ä"], ids=ascii)
async def test_a_key_that_no_header_can_carry_is_not_shown(luma, set_connection, seen, impatient, tmp_path, gap):
    set_connection(luma.base_url, key=f"sk-distinctive{gap}0123456789")
    told = await tell_everything(luma, tmp_path)
    everything = [*told, *seen()]
    assert [one for one in everything if "sk-distinctive" in one or "0123456789" in one] == []
    assert luma.calls == []


@pytest.mark.parametrize("verify", [True, False])
async def test_nobody_listens(luma, set_connection, free_port, api_key, seen, impatient, tmp_path, verify):
    set_connection(f"https://127.0.0.1:{free_port}", verify=verify)
    everything = [*await tell_everything(luma, tmp_path), *seen()]
    assert [one for one in everything if api_key in one] == []


async def test_a_redirect_elsewhere(wires, luma, set_connection, api_key, seen, impatient, tmp_path):
    other = wires.start()
    wire = wires.start(wires.answer(307, headers={"Location": other.base_url.replace("127.0.0.1", "localhost")}))
    set_connection(wire.base_url, allow_redirects=True)
    everything = [*await tell_everything(luma, tmp_path), *seen()]
    assert other.received
    assert [one for one in everything if api_key in one] == []
    assert [one for one in other.received if api_key in repr(one)] == []


async def test_connections_do_not_show_it(luma, luma_conn, api_key):
    for connection in (LumaHook().get_luma_connection(), await LumaAsyncHook().get_luma_connection()):
        assert connection.api_key == api_key
        assert api_key not in repr(connection)
        assert api_key not in str(connection)
        assert api_key not in f"{connection}"

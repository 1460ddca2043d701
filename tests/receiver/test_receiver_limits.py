# SPDX-License-Identifier: Apache-2.0
"""What a callback may cost the API server, which bodies are refused, and what happens when the database fails."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from airflow_provider_luma.receiver import app as receiver_app
from airflow_provider_luma.receiver import resume
from airflow_provider_luma.submission import store_folder
from harness.api_server import ENDED, proof
from harness.metadata_db import JOB, operator_awaiting_job


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"OK",
            b"null",
            b"\xff\xfe",
            b"[" * 100_000,
            {"data": None},
            {"data": {"taskId": None}},
            {"data": {"taskId": "a\ud800b"}},
            {"data": {"taskId": "a\0b"}},
            {"taskId": JOB},
            [ENDED],
        ],
        ids=lambda body: repr(body)[:30],
    )
    async def test_body_without_a_task_id_is_a_bad_request(self, metadata_db, api_server, body):
        metadata_db.defer(operator_awaiting_job())
        answer = await api_server.callback(proof(), body)
        assert (answer.status_code, answer.content) == (400, b"")
        assert metadata_db.resumed() == set()

    async def test_body_of_any_content_type_is_read(self, metadata_db, api_server):
        (task,) = metadata_db.defer(operator_awaiting_job())
        assert (await api_server.callback(proof(), headers={"Content-Type": "text/plain"})).status_code == 200
        assert metadata_db.resumed() == {task}

    async def test_body_of_ten_megabytes_is_refused_as_too_large(self, metadata_db, api_server):
        metadata_db.defer(operator_awaiting_job())
        answer = await api_server.callback(proof(), b'{"data": {"taskId": "' + b"x" * 10_000_000 + b'"}}')
        assert (answer.status_code, answer.content) == (413, b"")
        assert metadata_db.resumed() == set()

    async def test_body_without_a_length_is_read_only_until_it_is_too_large(self, api_server):
        count = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal count
            for _ in range(10_000):
                count += 1
                yield b" " * 1000

        answer = await api_server.callback(proof(), pieces())
        assert (answer.status_code, answer.content) == (413, b"")
        assert "content-length" not in answer.request.headers
        assert count <= receiver_app.MAX_BODY_BYTES // 1000 + 2

    async def test_body_of_exactly_the_largest_size_is_taken(self, api_server):
        text = json.dumps(ENDED).encode()
        largest = text + b" " * (receiver_app.MAX_BODY_BYTES - len(text))
        assert (await api_server.callback(proof(), largest)).status_code == 200
        assert (await api_server.callback(proof(), largest + b" ")).status_code == 413

    async def test_body_that_comes_too_slowly_is_refused(self, metadata_db, api_server, monkeypatch):
        monkeypatch.setattr(receiver_app, "BODY_TIMEOUT", 0.1)
        metadata_db.defer(operator_awaiting_job())

        async def stuck() -> AsyncIterator[bytes]:
            yield b'{"data":'
            await asyncio.Event().wait()

        answer = await api_server.callback(proof(), stuck())
        assert (answer.status_code, answer.content) == (408, b"")
        assert metadata_db.resumed() == set()

    async def test_body_that_is_cut_resumes_nobody(self, metadata_db, api_server):
        metadata_db.defer(operator_awaiting_job())
        scope = {"method": "POST", "path": "/luma/callback", "query_string": proof().encode()}
        await api_server.raw_request(scope, [json.dumps(ENDED).encode()], is_whole=False)
        await api_server.tasks_resumed()
        assert metadata_db.resumed() == set()


class TestDatabaseErrors:
    @staticmethod
    def fail(*_: Any) -> Any:
        raise OperationalError("SELECT", {}, Exception("the database is down"))

    async def test_callback_that_cannot_be_recorded_is_refused_so_that_luma_repeats_it_and_resumes_all_the_same(
        self, metadata_db, api_server, monkeypatch, caplog
    ):
        (task,) = metadata_db.defer(operator_awaiting_job())
        monkeypatch.setattr(resume, "record_callback", self.fail)
        answer = await api_server.callback(proof())
        assert (answer.status_code, answer.content) == (503, b"")
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert JOB in record.getMessage()
        assert "the database is down" in caplog.text
        assert metadata_db.resumed() == {task}

    async def test_recording_that_does_not_end_delays_resuming_only_for_a_while(
        self, metadata_db, api_server, monkeypatch, until
    ):
        monkeypatch.setattr(receiver_app, "RECORD_TIMEOUT", 0.1)
        (task,) = metadata_db.defer(operator_awaiting_job())
        recording_may_end = threading.Event()
        monkeypatch.setattr(resume, "record_callback", lambda *_: not recording_may_end.wait(30))
        answering = asyncio.create_task(api_server.callback(proof()))
        await asyncio.to_thread(until, metadata_db.resumed)
        assert not answering.done()
        recording_may_end.set()
        assert (await answering).status_code == 200
        assert metadata_db.resumed() == {task}

    @pytest.mark.parametrize("module", [resume, store_folder], ids=["database", "submission store"])
    async def test_many_recordings_that_do_not_end_keep_no_task_from_being_resumed(
        self, metadata_db, api_server, connect, monkeypatch, until, tmp_path, module
    ):
        monkeypatch.setattr(receiver_app, "RECORD_TIMEOUT", 0.1)
        connect("luma_stuck", **({"submission_store": str(tmp_path)} if module is store_folder else {}))
        (task,) = metadata_db.defer(operator_awaiting_job())
        recordings_may_end = threading.Event()
        monkeypatch.setattr(module, "record_callback", lambda *_: recordings_may_end.wait(30))
        stuck = [asyncio.create_task(api_server.callback(proof(conn_id="luma_stuck"))) for _ in range(10)]
        await asyncio.to_thread(until, lambda: len(receiver_app._running) >= 20)
        answering = asyncio.create_task(api_server.callback(proof()))
        try:
            await asyncio.to_thread(until, metadata_db.resumed)
        finally:
            recordings_may_end.set()
            await asyncio.gather(*stuck, answering)
        assert metadata_db.resumed() == {task}

    async def test_caller_that_leaves_before_its_answer_keeps_nothing_from_being_done(
        self, metadata_db, api_server, monkeypatch, until
    ):
        (task,) = metadata_db.defer(operator_awaiting_job())
        threads_are_free, recorded = threading.Event(), threading.Event()
        for threads in (receiver_app._recording, receiver_app._resuming):
            for _ in range(threads._max_workers):
                threads.submit(threads_are_free.wait, 30)
        monkeypatch.setattr(resume, "record_callback", lambda *_: recorded.set())
        answering = asyncio.create_task(api_server.callback(proof()))
        await asyncio.to_thread(until, lambda: receiver_app._running)
        answering.cancel()
        await asyncio.wait([answering])
        threads_are_free.set()
        await api_server.tasks_resumed()
        assert recorded.is_set()
        assert metadata_db.resumed() == {task}

    @pytest.mark.parametrize("step", ["find_waiting", "resume_waiting"])
    async def test_failure_to_resume_is_logged_and_the_next_callback_resumes(
        self, metadata_db, api_server, monkeypatch, caplog, step
    ):
        (task,) = metadata_db.defer(operator_awaiting_job())
        with monkeypatch.context() as patched:
            patched.setattr(resume, step, self.fail)
            assert (await api_server.callback(proof())).status_code == 200
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        (record,) = [record for record in errors if record.name == receiver_app.__name__]
        assert JOB in record.getMessage()
        assert metadata_db.resumed() == set()
        await api_server.callback(proof())
        assert metadata_db.resumed() == {task}

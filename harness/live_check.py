# SPDX-License-Identifier: Apache-2.0
"""
A check against the real service, for anyone with an account: ``make test-live LUMA_LIVE=1``.

It uses the connection ``luma_default`` (``AIRFLOW_CONN_LUMA_DEFAULT``) and writes a transcript of every call, without
the API key and without signatures, to compare with what the project knows about the service.

``LUMA_LIVE=free`` makes only calls that cost nothing; ``LUMA_LIVE=1`` also runs one job, on a clip of three seconds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from airflow_provider_luma.core.job import Request, Response
from airflow_provider_luma.core.redaction import without_credentials, without_key
from airflow_provider_luma.exceptions import LumaError
from airflow_provider_luma.hooks.luma import LumaHook
from airflow_provider_luma.transport import workers

PROMPT = "Make it a rainy night"

#: By service: the options that make the job cheap, and its price.
JOBS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "kie": (None, "kie.ai publishes no price; the credits are shown before and after"),
    "luma": ({"video": {"resolution": "360p"}}, "about 0.54 US dollars"),
}

#: Ids that no job has.
UNKNOWN_JOBS = {"kie": "0" * 32, "luma": "00000000-0000-4000-8000-000000000000"}


class Transcript:
    """
    The calls of a session.

    :param file: where they are written, one JSON object a line
    :param api_key: the key to leave out
    """

    def __init__(self, file: Path, api_key: str) -> None:
        self.file, self._api_key = file, api_key

    def record(self, send: Callable[..., Response]) -> Callable[..., Response]:
        """Return a function that sends a request and writes down request and response."""

        def recorded(connection: Any, request: Request, **options: Any) -> Response:
            sent_at = datetime.now(UTC)
            try:
                response = send(connection, request, **options)
            except Exception as error:
                self.write({"at": sent_at, "request": request._asdict(), "error": repr(error)})
                raise
            body = response.body[:20_000].decode("utf-8", "replace")
            self.write({"at": sent_at, "request": request._asdict(), "response": {**response._asdict(), "body": body}})
            return response

        return recorded

    def write(self, entry: dict[str, Any]) -> None:
        """Append an entry."""
        with self.file.open("a") as file:
            file.write(json.dumps(self._clean(entry)) + "\n")

    def _clean(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._clean(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._clean(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return without_credentials(without_key(str(value), self._api_key))


def check(folder: Path, *, runs_job: bool, say: Callable[[str], object] = print) -> Path:
    """
    Check the service behind ``luma_default``.

    :param folder: where the transcript goes
    :param runs_job: whether to submit one job, which costs money
    :param say: called with a line for each step
    :returns: the transcript
    """
    hook = LumaHook()
    connection = hook.get_luma_connection()
    service = connection.service.name
    transcript = Transcript(
        folder / f"luma-live-{service}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl", connection.api_key
    )
    with patch.object(workers, "send", transcript.record(workers.send)):
        say(f"The service is {service!r} at {connection.base_url}")
        say(f"Test of the connection: {hook.test_connection()}")
        unknown = partial(hook.get_client().get_status, UNKNOWN_JOBS[service])
        say(f"Status of a job that cannot exist: {_outcome(unknown)}")
        if runs_job:
            _run_job(hook, service, folder, say)
    say(f"Transcript: {transcript.file}")
    return transcript.file


def _run_job(hook: LumaHook, service: str, folder: Path, say: Callable[[str], object]) -> None:
    from airflow_provider_luma.simulator import media

    options, price = JOBS[service]
    say(f"Submitting one job: {price}")
    with tempfile.TemporaryDirectory() as temporary:
        clip = Path(temporary) / "clip.mp4"
        clip.write_bytes(media.sample("sample.mp4"))
        upload = hook.upload(str(clip), check_video=True)
    say(f"Uploaded a clip; the service keeps it until {upload.expires_at:%Y-%m-%d %H:%M} UTC")
    luma_task_id = hook.modify_video(PROMPT, upload.url, options=options)
    say(f"Accepted as {luma_task_id}")
    task = hook.wait_for_completion(luma_task_id, timeout=3900, poll_interval=10)
    say(f"Ended: created {task.created_at}, ended {task.completed_at}, {len(task.result_urls)} video(s)")
    video = hook.download(task.result_urls[0], str(folder), name=f"luma-live-{service}.mp4", overwrite=True)
    say(f"Downloaded {video}")


def _outcome(call: Callable[[], object]) -> str:
    try:
        return repr(call())
    except LumaError as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Run the checks that LUMA_LIVE selects."""
    mode = os.environ.get("LUMA_LIVE", "")
    if mode not in ("1", "free"):
        sys.exit(
            "This calls the real service. Set AIRFLOW_CONN_LUMA_DEFAULT, and LUMA_LIVE=free for calls that cost "
            "nothing, or LUMA_LIVE=1 to run one job as well (about 0.54 US dollars at Luma's own API)"
        )
    check(Path.cwd(), runs_job=mode == "1")


if __name__ == "__main__":
    main()

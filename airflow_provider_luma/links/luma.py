# SPDX-License-Identifier: Apache-2.0
"""
The "Luma result" link on our tasks, and what the page behind it reads of a task.

The page is static and asks Airflow for the task's XComs, with the rights of the user who opens it. Beside the
result that the task returns, it needs what was asked for, and what went wrong; both are pushed here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from airflow.sdk import BaseOperatorLink

from airflow_provider_luma.exceptions import LumaError

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

log = logging.getLogger(__name__)

#: XCom with the prompt and the input of a job, or with the source of a film.
REQUEST_KEY = "luma_request"

#: What a request is about. Requests of 1.1.0 have no kind: theirs are all clips.
CLIP, FILM = "clip", "film"

#: XCom with what Luma, or this package, said when the task failed.
ERROR_KEY = "luma_error"


class LumaResultLink(BaseOperatorLink):
    """Leads to the page that shows the original and the modified video side by side."""

    name = "Luma result"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """
        Return the page's address for a task, from the root of the host under which the user has opened Airflow.

        :param operator: the task
        :param ti_key: the task instance to show
        """
        from airflow_provider_luma.compat import conf, loop_iteration

        query = {
            "dag_id": ti_key.dag_id,
            "run_id": ti_key.run_id,
            "task_id": ti_key.task_id,
            "map_index": -1 if ti_key.map_index is None else ti_key.map_index,
        }
        region_id, region_index = loop_iteration(ti_key)
        if region_id is not None and region_id.int:
            query |= {"region_id": region_id, "region_index": region_index}
        prefix = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
        return f"{prefix}/luma/result?{urlencode(query)}"

    def push(self, operator: BaseOperator, context: Context) -> None:
        """Show the link now, and not only, as Airflow would by itself, once the task has given up its worker."""
        ti: Any = context["ti"]
        ti.xcom_push(key=self.xcom_key, value=self.get_link(operator, ti_key=ti))


def push_request(
    context: Context,
    *,
    prompt: str | None,
    video_url: str | None,
    source: str | None = None,
    recovery: str | None = None,
) -> None:
    """
    Let the page show what was asked for.

    :param video_url: the clip's address; of a file that was uploaded, the address of the copy
    :param source: the file that was uploaded to ``video_url``, for those who are told where the video is from
    :param recovery: how to fetch the video of a job that is paid for, should the task fail for whatever reason
    """
    optional = {key: value for key, value in {"source": source, "recovery": recovery}.items() if value}
    request = {"kind": CLIP, "prompt": prompt, "video_url": video_url, **optional}
    context["ti"].xcom_push(key=REQUEST_KEY, value=request)


def push_film(context: Context, *, source: str, modify_task_ids: list[str]) -> None:
    """
    Let the page show which film was modified, and where its clips are.

    :param source: the film's address, without secrets
    :param modify_task_ids: the tasks that have modified its clips
    """
    request = {"kind": FILM, "source": source, "modify_task_ids": modify_task_ids}
    context["ti"].xcom_push(key=REQUEST_KEY, value=request)


@contextmanager
def pushed_failure(context: Context) -> Iterator[None]:
    """Let the page show what went wrong, in Luma's words, and what to do."""
    try:
        yield
    except Exception as error:
        said = error if isinstance(error, LumaError) else error.__cause__
        if isinstance(said, LumaError):
            _push_error(context, said)
        raise


def _push_error(context: Context, error: LumaError) -> None:
    try:
        context["ti"].xcom_push(key=ERROR_KEY, value={**error.as_dict(), "remedy": error.remedy})
        if error.luma_task_id is not None:  # a retry begins without the XComs of the try before
            context["ti"].xcom_push(key="luma_task_id", value=error.luma_task_id)
    except Exception:
        # How the task ends matters more than how the page tells of it.
        log.exception("The result page will not tell why this task has failed")

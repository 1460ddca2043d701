# SPDX-License-Identifier: Apache-2.0
"""
The "Luma result" link on our tasks, and the XComs that its page needs.

The page is static and reads the task's XComs from Airflow with the rights of the user who opens it. Besides the result
that the task returns, it needs the request and any error; both are pushed here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from airflow.sdk import BaseOperatorLink

from airflow_provider_luma.exceptions import LumaError

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

log = logging.getLogger(__name__)

#: XCom with the prompt and the video of a job, or with the source of a film.
REQUEST_KEY = "luma_request"

#: The kind of a request. Version 1.1.0 pushed requests for clips only, without a kind.
CLIP, FILM = "clip", "film"

#: XCom with the files to which a download wrote a job's results. Its key ends with the job's id, so that a list of
#: XComs, which has keys but no values, shows whose results were fetched.
FETCHED_KEY = "luma_fetched_"

#: XCom with the error that failed the task, from Luma or from this package.
ERROR_KEY = "luma_error"


class LumaResultLink(BaseOperatorLink):
    """Links to the page that shows the original and the modified video side by side."""

    name = "Luma result"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """
        Return the page's address for a task instance, relative to the root of Airflow's host.

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
        """Show the link now. Airflow itself would show it only once the task has released its worker."""
        ti: Any = context["ti"]
        ti.xcom_push(key=self.xcom_key, value=self.get_link(operator, ti_key=ti))


def push_request(
    context: Context,
    *,
    prompt: str | None,
    video_url: str | None,
    source: str | None = None,
    recovery: str | None = None,
    price: float | None = None,
) -> None:
    """
    Show the request on the pages.

    :param prompt: the job's prompt; None if not known yet
    :param video_url: the address of the clip, or of its uploaded copy; None if not known yet
    :param source: the file that was uploaded to ``video_url``
    :param recovery: how to get the video of a paid job if the task fails
    :param price: what the job costs, in US dollars, if known
    """
    given = {"source": source, "recovery": recovery, "price": price}
    optional = {key: value for key, value in given.items() if value}
    request = {"kind": CLIP, "prompt": prompt, "video_url": video_url, **optional}
    context["ti"].xcom_push(key=REQUEST_KEY, value=request)


def push_film(context: Context, *, source: str, modify_task_ids: list[str]) -> None:
    """
    Show on the result page which film was modified, and which tasks modified its clips.

    :param source: the film's address, without secrets
    :param modify_task_ids: the tasks that modified its clips
    """
    request = {"kind": FILM, "source": source, "modify_task_ids": modify_task_ids}
    context["ti"].xcom_push(key=REQUEST_KEY, value=request)


def push_fetched(context: Context, luma_task_id: str, files: Sequence[str]) -> None:
    """
    Show on the overview that a job's results have been fetched.

    :param luma_task_id: the job's id. One that cannot be part of a key is not recorded; no service has such ids
    :param files: the addresses of the files, without secrets
    """
    if re.fullmatch(r"[\w.-]{1,256}", luma_task_id, re.ASCII):
        with _shown_if_possible("The overview will not show that the result of Luma task %s was fetched", luma_task_id):
            context["ti"].xcom_push(key=FETCHED_KEY + luma_task_id, value=[*files])


@contextmanager
def pushed_failure(context: Context) -> Iterator[None]:
    """Show an error of Luma and its remedy on the result page, even if an exception of Airflow wraps it."""
    try:
        yield
    except Exception as error:
        cause = error if isinstance(error, LumaError) else error.__cause__
        if isinstance(cause, LumaError):
            _push_error(context, cause)
        raise


def _push_error(context: Context, error: LumaError) -> None:
    with _shown_if_possible("The result page will not show why this task failed"):
        context["ti"].xcom_push(key=ERROR_KEY, value={**error.as_dict(), "remedy": error.remedy})
        if error.luma_task_id is not None:  # a retry starts without the XComs of the previous try
            context["ti"].xcom_push(key="luma_task_id", value=error.luma_task_id)


@contextmanager
def _shown_if_possible(message: str, *arguments: object) -> Iterator[None]:
    """Log what goes wrong: a problem with the pages must not change how the task ends."""
    try:
        yield
    except Exception:
        log.exception(message, *arguments)

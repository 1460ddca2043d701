# SPDX-License-Identifier: Apache-2.0
"""
What the pages ask of Airflow's REST API, at the wire: tasks in any state, with any XComs, and an API that fails.

The pages themselves, and the policy they are served with, are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from starlette.datastructures import QueryParams

from airflow_provider_luma.plugins.luma import LumaPlugin
from harness.api_server import api_server_thread

RUN = "/api/v2/dags/films/dagRuns/run_1"
TASK = f"{RUN}/taskInstances/modify"


class AirflowRestApi:
    """
    One task of one run, and the jobs of any DAGs.

    :param clip: a video, which is served as :attr:`clip_url`
    :ivar tasks: the task's instances by map index: their fields, with ``xcoms`` beside them
    :ivar jobs: task instances of any DAGs, as above
    :ivar faults: what to answer instead, by the end of the path, ``""`` for any: a status, ``login`` for a redirect to
        a sign-in page elsewhere, ``page`` for that page itself, or ``hold`` for no
        answer as long as it says so
    :ivar asked: the ends of the paths that were asked for
    :ivar takes_prefixes: whether it lists XComs by the beginnings of their keys, as Airflow 3.3 does; 3.1 ignores that
    """

    def __init__(self, clip: Path) -> None:
        self.clip = clip
        self.tasks: dict[int, dict[str, Any]] = {}
        self.jobs: list[dict[str, Any]] = []
        self.questions: list[Any] = []
        self.faults: dict[str, Any] = {}
        self.asked: list[str] = []
        self.takes_prefixes = True
        self.url = ""

    @property
    def clip_url(self) -> str:
        return f"{self.url}/clip.mp4"

    def show(self, state: str | None, *, map_index: int = -1, **xcoms: Any) -> None:
        """Put the task, or one of its instances, into a state."""
        self.tasks[map_index] = {
            "state": state,
            "xcoms": {key: value for key, value in xcoms.items() if value is not None},
        }

    def add_job(
        self,
        dag_id: str,
        state: str | None,
        *,
        started: timedelta = timedelta(hours=1),
        operator: str = "LumaModifyOperator",
        map_index: int = -1,
        **xcoms: Any,
    ) -> None:
        """Add a run with a task instance that started so long ago and, unless it goes on, ended ten minutes later."""
        began = datetime.now(UTC) - started
        ended = (began + timedelta(minutes=10)).isoformat() if state in ("success", "failed", "skipped") else None
        number = len(self.jobs) + 1
        self.jobs.append(
            {
                **{"id": f"id-{number}", "dag_id": dag_id, "dag_run_id": f"run_{number}", "task_id": "modify"},
                **{"state": state, "operator": operator, "map_index": map_index},
                **{"start_date": began.isoformat(), "end_date": ended, "xcoms": xcoms},
            }
        )

    def page(self, page: str = "result", map_index: int | None = None) -> str:
        """Return the address of a page that shows the task."""
        index = {} if map_index is None else {"map_index": map_index}
        return (
            f"{self.url}/luma/{page}?{urlencode({'dag_id': 'films', 'run_id': 'run_1', 'task_id': 'modify', **index})}"
        )

    def reset(self) -> None:
        self.tasks, self.faults, self.questions, self.jobs = {}, {}, [], []
        self.asked.clear()
        self.takes_prefixes = True

    @contextmanager
    def running(self) -> Iterator[AirflowRestApi]:
        """Serve the task and the pages."""
        app = FastAPI()
        for mounted in LumaPlugin.fastapi_apps:
            app.mount(mounted["url_prefix"], mounted["app"])
        app.add_api_route("/clip.mp4", self._clip, methods=["GET"])
        app.add_api_route("/api/v2/{path:path}", self._answer, methods=["GET"])
        with api_server_thread(app) as port:
            self.url = f"http://127.0.0.1:{port}"
            try:
                yield self
            finally:
                self.faults = {}  # a server does not end before it has answered

    async def _clip(self) -> Response:
        return FileResponse(self.clip, media_type="video/mp4")

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        self.asked.append(path.rpartition("/")[2])
        while (fault := self._fault(path)) == "hold":
            await asyncio.sleep(0.02)
        if fault == "login":
            return RedirectResponse("https://login.example.com/")
        if fault == "page":
            return HTMLResponse("<title>Sign in</title>")
        if fault is not None:
            return JSONResponse({"detail": "as the test wants"}, fault)
        return JSONResponse(self._found(path, request.query_params))

    def _fault(self, path: str) -> Any:
        return next((fault for end, fault in self.faults.items() if path.endswith(end)), None)

    def _found(self, path: str, query: QueryParams) -> Any:
        _, dag_id, _, run_id, _, *rest = path.removeprefix("/api/v2/").split("/") + [""] * 5
        if run_id == "~" and rest[0] == "":
            return self._list(dag_id, query)
        if run_id == "~":
            return self._xcoms_of_all(query)
        map_index = int(query.get("map_index", -1))
        for job in self.jobs:
            if (job["dag_id"], job["dag_run_id"], job["map_index"]) == (dag_id, run_id, map_index):
                return self._xcoms(job, "/".join(rest).rstrip("/").removeprefix(job["task_id"]).strip("/"))
        if path == RUN:
            return {"state": "running"}
        if path == f"{RUN}/hitlDetails":
            return {"hitl_details": self.questions}
        rest = path.removeprefix(TASK).removeprefix("/")
        if rest == "listMapped":
            mapped = [self._instance(index) for index in sorted(self.tasks) if index >= 0]
            return {"task_instances": mapped, "total_entries": len(mapped)}
        if rest.startswith("xcomEntries"):
            return self._xcoms(self.tasks.get(map_index, {"xcoms": {}}), rest)
        if (index := int(rest or -1)) in self.tasks:
            return self._instance(index)
        raise HTTPException(404)

    @staticmethod
    def _xcoms(instance: dict[str, Any], rest: str) -> Any:
        key = rest.removeprefix("xcomEntries").removeprefix("/")
        if not key:
            return {"xcom_entries": [{"key": key} for key in instance["xcoms"]]}
        if key not in instance["xcoms"]:
            raise HTTPException(404)
        return {"key": key, "value": instance["xcoms"][key]}

    def _xcoms_of_all(self, query: QueryParams) -> Any:
        keys = [key for job in self.jobs for key in job["xcoms"]]
        if "xcom_key" in query:
            keys = [key for key in keys if key == query["xcom_key"]]
        elif self.takes_prefixes:
            keys = [key for key in keys if key.startswith(tuple(query["xcom_key_prefix_pattern"].split("|")))]
        return {"xcom_entries": [{"key": key} for key in keys[: int(query["limit"])]], "total_entries": len(keys)}

    def _list(self, dag_id: str, query: QueryParams) -> Any:
        def is_listed(job: dict[str, Any]) -> bool:
            return (
                job["operator"] in query.getlist("operator")
                and (not query.getlist("state") or job["state"] in query.getlist("state"))
                and dag_id in ("~", job["dag_id"])
                and _is_between(job["start_date"], query.get("start_date_gte"), None)
                and _is_between(job["end_date"], query.get("end_date_gte"), query.get("end_date_lte"))
            )

        if dag_id != "~" and not any(job["dag_id"] == dag_id for job in self.jobs):
            raise HTTPException(404)
        order = query["order_by"]
        found = sorted(
            filter(is_listed, self.jobs), key=lambda job: job[order.lstrip("-")], reverse=order.startswith("-")
        )
        first, limit = int(query["offset"]), int(query["limit"])
        instances = [self._described(job) for job in found[first : first + limit]]
        return {"task_instances": instances, "total_entries": len(found)}

    def _instance(self, index: int) -> dict[str, Any]:
        return {"map_index": index, "start_date": "2026-11-29T08:00:00Z", **self._described(self.tasks[index])}

    @staticmethod
    def _described(instance: dict[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in instance.items() if name != "xcoms"}
        return {"try_number": 1, "rendered_map_index": None, "trigger": None, **fields}


def _is_between(time: str | None, first: str | None, last: str | None) -> bool:
    if first is None and last is None:
        return True
    if time is None:
        return False
    at = datetime.fromisoformat(time)
    after = first is None or at >= datetime.fromisoformat(first)
    return after and (last is None or at <= datetime.fromisoformat(last))

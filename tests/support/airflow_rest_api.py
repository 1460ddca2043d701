# SPDX-License-Identifier: Apache-2.0
"""
What the pages ask of Airflow's REST API, at the wire: a task in any state, with any XComs, and an API that fails.

The pages themselves, and the policy they are served with, are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse

from airflow_provider_luma.plugins.luma import LumaPlugin
from harness.api_server import api_server_thread

RUN = "/api/v2/dags/films/dagRuns/run_1"
TASK = f"{RUN}/taskInstances/modify"


class AirflowRestApi:
    """
    One task of one run.

    :param clip: a video, which is served as :attr:`clip_url`
    :ivar tasks: the task's instances by map index: their fields, with ``xcoms`` beside them
    :ivar faults: what to answer instead, by the end of the path, ``""`` for any: a status, ``login`` for a redirect to
        a sign-in page elsewhere, ``page`` for that page itself, or ``hold`` for no
        answer as long as it says so
    :ivar asked: the ends of the paths that were asked for
    """

    def __init__(self, clip: Path) -> None:
        self.clip = clip
        self.tasks: dict[int, dict[str, Any]] = {}
        self.questions: list[Any] = []
        self.faults: dict[str, Any] = {}
        self.asked: list[str] = []
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

    def page(self, page: str = "result", map_index: int | None = None) -> str:
        """Return the address of a page that shows the task."""
        index = {} if map_index is None else {"map_index": map_index}
        return (
            f"{self.url}/luma/{page}?{urlencode({'dag_id': 'films', 'run_id': 'run_1', 'task_id': 'modify', **index})}"
        )

    def reset(self) -> None:
        self.tasks, self.faults, self.questions = {}, {}, []
        self.asked.clear()

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
        return JSONResponse(self._found(path, int(request.query_params.get("map_index", -1))))

    def _fault(self, path: str) -> Any:
        return next((fault for end, fault in self.faults.items() if path.endswith(end)), None)

    def _found(self, path: str, map_index: int) -> Any:
        if path == RUN:
            return {"state": "running"}
        if path == f"{RUN}/hitlDetails":
            return {"hitl_details": self.questions}
        rest = path.removeprefix(TASK).removeprefix("/")
        if rest == "listMapped":
            mapped = [self._instance(index) for index in sorted(self.tasks) if index >= 0]
            return {"task_instances": mapped, "total_entries": len(mapped)}
        xcoms = self.tasks.get(map_index, {"xcoms": {}})["xcoms"]
        if rest == "xcomEntries":
            return {"xcom_entries": [{"key": key} for key in xcoms]}
        if rest.startswith("xcomEntries/"):
            key = rest.removeprefix("xcomEntries/")
            if key in xcoms:
                return {"key": key, "value": xcoms[key]}
        elif (index := int(rest or -1)) in self.tasks:
            return self._instance(index)
        raise HTTPException(404)

    def _instance(self, index: int) -> dict[str, Any]:
        fields = {name: value for name, value in self.tasks[index].items() if name != "xcoms"}
        started = {"start_date": "2026-11-29T08:00:00Z", "try_number": 1, "rendered_map_index": None, "trigger": None}
        return {"map_index": index, **started, **fields}

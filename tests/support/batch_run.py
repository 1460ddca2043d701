# SPDX-License-Identifier: Apache-2.0
"""A run of modify_videos, task by task as Airflow runs it: fields are rendered, and XComs and states are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.media import input_check
from airflow_provider_luma.plugins import listener
from airflow_provider_luma.task_groups.batch import modify_videos
from tests.support.clips import clip as make_clip
from tests.support.task_instance import Killed, TaskStateStore

PLAN, MODIFY, DOWNLOAD, COLLECT = "batch.plan", "batch.clip.modify", "batch.clip.download", "batch.collect"


class _TaskInstance:
    """The part of Airflow's task instance that the operators use."""

    def __init__(self, run: BatchRun, task_id: str, map_index: int, tries: int, max_tries: int) -> None:
        self.dag_id, self.run_id, self.task_id, self.map_index = run.dag.dag_id, run.run_id, task_id, map_index
        self.id = f"{run.run_id} {task_id} {map_index}"
        self.try_number, self.max_tries = tries, max_tries
        self.task: Any = None
        self._run = run
        if map_index >= 0:
            self._upstream_map_indexes = {MODIFY: map_index}  # which Airflow 3.1 is told by its server

    def get_template_context(self) -> Any:
        return self._run.context(self)

    def xcom_push(self, key: str, value: Any) -> None:
        self._run.xcoms[self.task_id, self.map_index, key] = json.dumps(value)

    def xcom_pull(
        self, task_ids: str | list[str], key: str = "return_value", *, map_indexes: Any = "all", default: Any = None
    ) -> Any:
        """Return what Airflow does: one value, those of some map indexes, or of all of them in order."""
        xcoms = self._run.xcoms

        def one(task_id: str, index: int | None) -> Any:
            value = xcoms.get((task_id, -1 if index is None else index, key))
            return default if value is None else json.loads(value)

        if isinstance(task_ids, list):
            assert map_indexes == "all"
            found = sorted(
                (index, value) for (task, index, name), value in xcoms.items() if (task, name) == (task_ids[0], key)
            )
            return [json.loads(value) for _, value in found] or [None]
        if isinstance(map_indexes, Iterable) and not isinstance(map_indexes, str):
            return [one(task_ids, index) for index in map_indexes]
        if map_indexes == "all":
            # That of the task itself, if it is of the same mapped group; otherwise the one of a task without an index.
            same_group = task_ids.startswith("batch.clip.")
            return one(task_ids, self.map_index if same_group else -1)
        return one(task_ids, map_indexes)

    def get_relevant_upstream_map_indexes(self, **_: Any) -> int:
        return self.map_index

    def get_task_states(self, *, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, dict[str, str]]:
        assert (dag_id, run_ids) == (self.dag_id, [self.run_id])
        states = self._run.states.items()
        found = {
            f"{task}_{index}" if index >= 0 else task: state for (task, index), state in states if task in task_ids
        }
        return {self.run_id: found}


class BatchRun:
    """
    One run of a DAG with one batch.

    :param run_id: the run
    :ivar xcoms: by task, map index and key
    :ivar states: by task and map index
    :ivar errors: what the tasks have raised
    """

    def __init__(self, run_id: str = "run_1", *, dag_id: str = "videos", params: Any = None, **parameters: Any) -> None:
        with DAG(dag_id, schedule=None) as self.dag:
            waiting = {"poll_interval": 0.02, "deferrable": False, "timeout": 60}
            modify_videos(**{"group_id": "batch", "prompt": "make it snow", **waiting, **parameters})
        self.run_id = run_id
        self.params = params or {}
        self.outlet_events: Any = {}
        self.xcoms: dict[tuple[str, int, str], str] = {}
        self.states: dict[tuple[str, int], str] = {}
        self.errors: dict[tuple[str, int], BaseException] = {}
        self.tries: dict[tuple[str, int], int] = {}
        self._max_tries: dict[tuple[str, int], int] = {}
        self._stores: dict[tuple[str, int], TaskStateStore] = {}

    def run(self) -> Any:
        """Run all tasks; return the table, or raise what the group fails with."""
        self.plan()
        for index in range(len(self.todo)):
            self.clip(index)
        return self.collect()

    def plan(self) -> list[dict[str, Any]]:
        """Return the clips to modify."""
        self.execute(PLAN)
        return self.todo

    @property
    def todo(self) -> list[dict[str, Any]]:
        return json.loads(self.xcoms.get((PLAN, -1, "return_value"), "[]"))

    def clip(self, index: int) -> None:
        """Modify a clip and download it; a clear of what has run."""
        if self.execute(MODIFY, index):
            self.execute(DOWNLOAD, index)
        else:
            self.states[DOWNLOAD, index] = "upstream_failed"

    def collect(self) -> Any:
        self.execute(COLLECT)
        if (COLLECT, -1) in self.errors:
            raise self.errors[COLLECT, -1]
        return json.loads(self.xcoms[COLLECT, -1, "return_value"])

    def forget_records(self) -> None:
        """Lose the records of all submissions, as a Clear on Airflow 3.4 does, or an Airflow that keeps none."""
        self._stores.clear()

    def execute(self, task_id: str, map_index: int = -1, *, is_retry: bool = False) -> bool:
        """Run one task; return whether it has succeeded. If it has run before, it was cleared, or is retried."""
        key = (task_id, map_index)
        if not is_retry or key not in self.tries:  # Airflow lets a cleared task have as many retries as it had before
            self._max_tries[key] = self.tries.get(key, 0) + self.dag.get_task(task_id).retries
        self.tries[key] = self.tries.get(key, 0) + 1
        self.xcoms = {at: value for at, value in self.xcoms.items() if at[:2] != key}
        self.errors.pop(key, None)
        ti = _TaskInstance(self, task_id, map_index, self.tries[key], self._max_tries[key])
        task = ti.task = self.prepared(task_id)
        try:
            task.render_template_fields(self.context(ti))
            result = task.execute(self.context(ti))
        except (Exception, Killed) as error:
            self.states[key], self.errors[key] = "failed", error
            return False
        ti.xcom_push("return_value", result)
        self.states[key] = "success"
        listener.on_task_instance_success(task_instance=ti)
        return True

    def prepared(self, task_id: str) -> Any:
        """Return a task as a worker has it."""
        self.dag.resolve_template_files()
        return self.dag.get_task(task_id).prepare_for_execution()

    def context(self, ti: Any) -> dict[str, Any]:
        store = self._stores.setdefault((ti.task_id, ti.map_index), TaskStateStore())
        return {
            **{"ti": ti, "task": ti.task, "dag": self.dag, "run_id": self.run_id, "params": self.params},
            **{"task_state_store": store, "dag_run": SimpleNamespace(conf={}, clear_number=0), "word": "SECRET"},
            "outlet_events": self.outlet_events,
        }


@pytest.fixture
def unopened_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check clips by their size and first bytes, as without PyAV: to open one takes a process that imports it."""
    monkeypatch.setattr(input_check, "_has_pyav", lambda: False)


@pytest.fixture
def folder(tmp_path: Path, luma_conn: str, unopened_clips: None) -> Path:
    """A folder with three clips, two of which have the same content."""
    folder = tmp_path / "clips"
    folder.mkdir()
    clip = make_clip()
    for name in ("a.mp4", "b.mov", "c.mp4"):
        (folder / name).write_bytes(clip)
    (folder / "notes.txt").write_text("no clip")
    (folder / ".hidden.mp4").write_bytes(clip)
    return folder


@pytest.fixture
def batch(folder: Path, tmp_path: Path) -> Callable[..., BatchRun]:
    """Makes a run that modifies the clips of the folder."""

    def _batch(run_id: str = "run_1", **parameters: Any) -> BatchRun:
        return BatchRun(run_id, **{"clips": str(folder), "destination": f"{tmp_path}/videos", **parameters})

    return _batch


@pytest.fixture
def only_a(batch: Callable[..., BatchRun]) -> Callable[..., BatchRun]:
    """Makes a run that modifies one of the clips of the folder."""

    def _only_a(run_id: str = "run_1", **parameters: Any) -> BatchRun:
        return batch(run_id, **{"pattern": "a.*", "allowed_failures": 1, **parameters})

    return _only_a


def files(tmp_path: Path) -> list[str]:
    """Return the names of the files that a batch has written."""
    folder = tmp_path / "videos"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def claim_in(tmp_path: Path, name: str = "sample.mp4") -> Any:
    """Return the claim beside a video; None if there is none."""
    file = tmp_path / "videos" / f".{name}.luma-job.json"
    return json.loads(file.read_text()) if file.exists() else None


def videos(table: Any) -> list[str | None]:
    """Return the names of the videos in a table."""
    return [row["video"] and row["video"].rpartition("/")[2] for row in table]


def failure(run: BatchRun, task_id: str = PLAN) -> str:
    """Return what a task fails with, without using retries."""
    assert not run.execute(task_id)
    error = run.errors[task_id, -1]
    assert isinstance(error, AirflowFailException), error
    return str(error)

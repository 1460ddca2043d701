# SPDX-License-Identifier: Apache-2.0
"""
One DAG for each moment at which something is killed.

``Held`` is our operator with places to stand still: its first try waits there for as long as the test has not
killed it, having said so by a file.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_provider_luma.operators.luma import LumaModifyOperator

#: What the ids of the DAGs of each service begin with.
PREFIXES = ("crash", "crash_luma")

STAGE = Path(os.environ["CRASH_STAGE"])


class Held(LumaModifyOperator):
    def __init__(self, *, hold_at: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hold_at = hold_at
        self.checks = 0

    def _hold(self, context: Any, place: str) -> None:
        if place == self.hold_at and context["ti"].try_number == 1:
            (STAGE / f"{self.dag_id}-{place}").write_text(str(os.getpid()))
            while not (STAGE / f"{self.dag_id}-goes-on").exists():
                time.sleep(0.05)

    def execute(self, context: Any) -> Any:
        self.context = context
        return super().execute(context)

    def execute_from_queue(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        self.context = context
        return super().execute_from_queue(context, *args, **kwargs)

    def fail_if_killed(self) -> None:
        super().fail_if_killed()
        self.checks += 1
        if self.checks == 2:  # the intent is recorded, and the connection to Luma is open
            self._hold(self.context, "before_sending")

    def open_store(self, context: Any, *connection: Any) -> Any:
        store = super().open_store(context, *connection)
        if self.hold_at == "intent_lost":
            lose_answers(store, context["ti"].try_number)
        return store

    def defer(self, **kwargs: Any) -> Any:
        self._hold(self.context, "before_deferral")
        return super().defer(**kwargs)

    def execute_complete(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        self._hold(context, "execute_complete")
        return super().execute_complete(context, *args, **kwargs)


def fail_if_told(context: Any, result: Any) -> None:
    """Fail after the operator has returned, as a user's own code may."""
    if (STAGE / "post_execute-fails").exists():
        raise RuntimeError("post_execute was told to fail")


def lose_answers(store: Any, try_number: int) -> None:
    """Let the write of the intent be done without an answer in the first try, and fail in the second."""
    begin = store.begin

    def begin_unanswered(intent: Any) -> None:
        if try_number != 2:
            begin(intent)
        if try_number <= 2:
            raise OSError("the store does not answer")

    store.begin = begin_unanswered


def retries_in_file() -> int:
    """Return the retries that a test has changed, as another version of this DAG file would."""
    file = STAGE / "retries"
    return int(file.read_text()) if file.exists() else 1


CASES: dict[str, dict[str, Any]] = {
    "answer_lost": {},
    "answer_lost_resubmit": {"resubmit_on_unknown": True},
    "before_deferral": {"hold_at": "before_deferral"},
    "execute_complete": {"hold_at": "execute_complete"},
    "triggerer": {},
    "api_server": {"retries": 10},  # a busy machine takes its time to start it again
    "scheduler": {},
    "synchronous": {"deferrable": False},
    "timed_out": {"timeout": 5},
    "never_delivered": {"timeout": 5, "retries": 0},
    "not_stored": {"post_execute": fail_if_told, "retries": 1},
    "refused_key": {},
    "changed_request": {
        "prompt": "{{ var.value.get('prompt', 'Make it a snowy morning') }}",
        "timeout": 5,
        "retries": 0,
    },
    "frozen": {"hold_at": "before_sending"},
    "wrong_failure": {"resubmit_on_failure": False},
    "intent_lost": {"hold_at": "intent_lost"},
    "fewer_retries": {"retries": retries_in_file()},
    "key_limit": {"retries": 1},
    "echo": {"luma_conn_id": "luma_echo", "retries": 0},
    "switched": {"luma_conn_id": "luma_switched", "retries": 0},
}

for prefix, (name, options) in product(PREFIXES, CASES.items()):
    with DAG(dag_id=f"{prefix}_{name}", schedule=None):
        Held(
            task_id="modify",
            video_url=os.environ["LUMA_VIDEO_URL"],
            poll_interval=2,
            retry_delay=timedelta(seconds=1),
            **{
                "prompt": "Make it a snowy morning",
                "retries": 2,
                "luma_conn_id": f"luma_{prefix}_{name}",
                **options,
            },
        )

for prefix, name in product(PREFIXES, ("cleared", "cleared_with_store")):
    with DAG(dag_id=f"{prefix}_{name}", schedule=None):
        LumaModifyOperator(
            task_id="modify",
            prompt="{{ var.value.get('prompt', 'Make it a snowy morning') }}",
            video_url=os.environ["LUMA_VIDEO_URL"],
            luma_conn_id=f"luma_{prefix}_{name}",
            poll_interval=2,
        )

with DAG(dag_id="crash_at_random", schedule=None):
    LumaModifyOperator.partial(
        task_id="modify",
        video_url=os.environ["LUMA_VIDEO_URL"],
        luma_conn_id="luma_crash_at_random",
        poll_interval=5,
        timeout=240,
        retries=10,
        retry_delay=timedelta(seconds=1),
    ).expand(
        prompt=[f"Make it morning number {number}" for number in range(int(os.environ.get("RANDOM_KILLS_JOBS", "100")))]
    )

for prefix in PREFIXES:
    with DAG(dag_id=f"{prefix}_in_queue", schedule=None):
        LumaModifyOperator.partial(
            task_id="modify",
            video_url=os.environ["LUMA_VIDEO_URL"],
            luma_conn_id=f"luma_{prefix}_in_queue",
            poll_interval=2,
        ).expand(prompt=[f"Make it morning number {number}" for number in range(12)])

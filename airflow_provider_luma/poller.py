# SPDX-License-Identifier: Apache-2.0
"""
Looking at many jobs from one event loop, and lining up to submit: what triggers share.

All triggers of a triggerer share one event loop. Those that use the same connection share one :class:`Poller`: one
hook with its kept connections, and the turns to look, see :mod:`~airflow_provider_luma.turns`. Each trigger takes its
look itself, in its turn, so that everything it logs lands in its own task's log, and whatever happens to it (an error,
a cancellation) happens to nobody else.

Tasks whose submission was refused for being too many share a :class:`SubmissionLine`, which tells one after the other
to try again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_luma.exceptions import LumaRateLimitError
from airflow_provider_luma.hooks.luma import LumaAsyncHook
from airflow_provider_luma.protocol import LumaTask
from airflow_provider_luma.turns import Durations, Turns
from airflow_provider_luma.waiting import Watch

#: What the service accepts of an account, says https://docs.kie.ai: 20 submissions in 10 seconds.
SUBMISSIONS_PER_SECOND, SUBMISSION_WINDOW = 2.0, 10.0

#: How much of that is used. When a submission leaves is not certain, as the worker for it takes its time to start.
SHARE_OF_SUBMISSIONS = 0.9


class Poller:
    """
    The shared way to the service of all triggers that wait in one event loop over one connection.

    :param luma_conn_id: the connection that holds the API key
    """

    #: How many triggers wait.
    gauge: ClassVar[str] = "luma.waiting"

    def __init__(self, luma_conn_id: str) -> None:
        self._hook = LumaAsyncHook(luma_conn_id)
        self._turns = Turns(self._hook.get_requests_per_second)
        self._durations = Durations()

    async def wait_for(self, watch: Watch) -> LumaTask:
        """
        Look at a job, in turn with all the others, until it has ended well.

        :raises LumaError: what the watch decided to end with
        """
        clock = asyncio.get_running_loop().time
        due, claim = clock(), clock() + self._patience(watch, 0.0)
        while True:
            async with self._turns.turn(due, claim):
                left = clock()
                Stats.timing("luma.look.lateness", max(0.0, left - due) * 1000)
                seen, watch.trouble = watch.task, None
                try:
                    outcome = await self._hook.look(watch)
                finally:
                    self._learn(watch, seen, left)
            if isinstance(outcome, LumaTask):
                return outcome
            due = clock() + outcome
            claim = due + self._patience(watch, outcome)

    async def close(self) -> None:
        """Stop handing out turns, and close the connections."""
        self._turns.close()
        await self._hook.close()

    def _patience(self, watch: Watch, seconds: float) -> float:
        """Return for how long a job's next look, due in so many seconds, can give way to others."""
        is_running = watch.trouble is None and watch.is_settled and not (watch.task and watch.task.is_finished)
        if watch.made is None or not is_running:
            return 0.0
        now = time.time()
        age = max(0.0, now - watch.made)
        # Before the first look nobody knows more of a job than that it was made.
        seen_running, then = (age, seconds) if watch.task is not None else (0.0, age + seconds)
        patience = self._durations.patience(seen_running, then)
        return patience if watch.end_time is None else max(0.0, min(patience, watch.end_time - now - seconds))

    def _learn(self, watch: Watch, seen: LumaTask | None, left: float) -> None:
        """
        Count a look, let a refusal slow down everybody, and a job that has ended tell how long jobs take.

        :param seen: the job as the look before has seen it
        :param left: when the look was taken, by the event loop's clock
        """
        Stats.incr("luma.look")
        if isinstance(watch.trouble, LumaRateLimitError):
            Stats.incr("luma.look.refused")
            self._turns.refused(watch.trouble.retry_after, left=left)
        task = watch.task
        if task is not None and task.created_at and task.completed_at and not (seen and seen.completed_at):
            seconds = (task.completed_at - task.created_at).total_seconds()
            self._durations.add(seconds)
            Stats.timing("luma.job.duration", seconds * 1000)
            Stats.timing("luma.job.lateness", max(0.0, time.time() - task.completed_at.timestamp()) * 1000)


class SubmissionLine:
    """
    The line of all deferred tasks that wait in one event loop to submit over one connection.

    :param luma_conn_id: the connection
    """

    #: How many tasks wait.
    gauge: ClassVar[str] = "luma.submission.waiting"

    def __init__(self, luma_conn_id: str) -> None:
        self._turns = Turns(_submissions_per_second, SHARE_OF_SUBMISSIONS)
        # Nobody would line up if the last seconds had not been used up.
        self._turns.pause(SUBMISSION_WINDOW)

    async def wait(self, since: float) -> None:
        """
        Wait for one's turn to submit.

        :param since: when the task first wanted to submit, in seconds since the epoch: who waits longest is first
        """
        async with self._turns.turn(asyncio.get_running_loop().time(), since):
            pass

    @property
    def length(self) -> int:
        """How many wait."""
        return self._turns.length

    def refused(self, not_before: float, *, turn: float | None) -> None:
        """
        Take note of a submission that was refused.

        :param not_before: until when the service wants no submissions, in seconds since the epoch
        :param turn: when the task was given its turn, in seconds since the epoch; None if it had tried without
        """
        now = time.time()
        pause = max(0.0, not_before - now)
        if turn is None:
            self._turns.pause(pause)
        else:
            self._turns.refused(pause, left=asyncio.get_running_loop().time() - (now - turn))

    async def close(self) -> None:
        """Stop handing out turns."""
        self._turns.close()


async def _submissions_per_second() -> float:
    return SUBMISSIONS_PER_SECOND


class _Shared(Protocol):
    """What triggers of one event loop share, as long as there are any."""

    gauge: ClassVar[str]

    def __init__(self, luma_conn_id: str) -> None: ...

    async def close(self) -> None: ...


S = TypeVar("S", bound=_Shared)


@dataclass
class _Users:
    shared: Any
    number: int = 0


_users: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[type, str], _Users]] = WeakKeyDictionary()


@asynccontextmanager
async def shared(kind: type[S], luma_conn_id: str) -> AsyncIterator[S]:
    """Return what this event loop shares of a kind for a connection: made for its first user, closed by its last."""
    of_loop = _users.setdefault(asyncio.get_running_loop(), {})
    key = (kind, luma_conn_id)
    if key not in of_loop:
        of_loop[key] = _Users(kind(luma_conn_id))
    users = of_loop[key]
    users.number += 1
    Stats.gauge(kind.gauge, users.number, tags={"conn_id": luma_conn_id})
    try:
        yield users.shared
    finally:
        users.number -= 1
        Stats.gauge(kind.gauge, users.number, tags={"conn_id": luma_conn_id})
        if not users.number:
            del of_loop[key]
            await users.shared.close()

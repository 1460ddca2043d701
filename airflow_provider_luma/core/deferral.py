# SPDX-License-Identifier: Apache-2.0
"""
What the processes of one task pass to each other: the state that a deferral carries, and the events that end it.

An operator defers with a :class:`DeferralState`. A trigger, or the receiver of callbacks, resumes it with one of the
events below. Both travel as JSON values through Airflow's database.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict, final

#: Minimum seconds for which a task stays deferred. Airflow fails a task that is resumed and queued before the
#: scheduler has noticed that its worker ended ("executor reported success, but the task instance's state is queued").
#: The worker's supervisor takes up to 5 seconds to notice, and a busy scheduler's loop just as long.
SHORTEST_DEFERRAL = 15.0

#: The triggers whose tasks a callback resumes, by their names in the database.
RESUMABLE_TRIGGERS = tuple(
    f"airflow_provider_luma.triggers.luma.{name}" for name in ("LumaTaskTrigger", "LumaCallbackTrigger")
)


class DeferralState(NamedTuple):
    """
    What a deferred task passes to the process that resumes it, as keyword arguments of the method to call.

    All times are in seconds since the epoch.

    :param luma_task_id: the job that the task waits for
    :param reference: the submission that created the job, if known; without ``luma_task_id``, the submission whose
        response was lost, and whose callback the task waits for
    :param created_at: when the job was created, if known
    :param callback_task_id: the job named by a callback of that submission, if it could not be verified yet
    :param end_time: when the task's ``timeout`` ends the wait
    :param execution_deadline: when ``execution_timeout`` ends this try
    :param first_attempt_at: when the task first tried to submit
    :param outage_since: when Luma became unavailable for the submission
    :param upload: the stored details of the input video's upload
    :param service: the name of the job's service; None if it is the default
    :param luma_conn_id: the task's connection; None if an earlier version, without this field, deferred the task
    :param parameters: the rendered return value of the ``@task.luma_modify`` function
    """

    luma_task_id: str | None = None
    reference: str | None = None
    callback_task_id: str | None = None
    end_time: float | None = None
    execution_deadline: float | None = None
    first_attempt_at: float | None = None
    outage_since: float | None = None
    upload: dict[str, Any] | None = None
    luma_conn_id: str | None = None
    parameters: dict[str, Any] | None = None
    created_at: float | None = None
    service: str | None = None

    def as_kwargs(self) -> dict[str, Any]:
        """Return all fields but None as JSON values. :meth:`is_resumed_by` relies on Airflow not encrypting them."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    @classmethod
    def read(cls, kwargs: Mapping[str, Any], event: Event | None = None) -> DeferralState:
        """
        Read the state that a resumed task was given.

        :param kwargs: the keyword arguments of its method
        :param event: the event that resumed it, which may repeat the state: ``dag.test()`` of Airflow 3.1 to 3.3
            passes only the event
        """
        if not kwargs and event is not None and "state" in event:
            kwargs = event["state"]
        return cls(**{name: kwargs[name] for name in cls._fields if name in kwargs})

    @staticmethod
    def is_resumed_by(
        kwargs: Mapping[str, Any] | None, *, luma_task_id: str, reference: str, luma_conn_id: str
    ) -> bool:
        """
        Return whether a callback for this job, submission and connection is for the task that stored these kwargs.

        A sensor, or a task deferred by an earlier version, may not know which submission created its job.
        """
        stored = kwargs or {}
        expected = {"luma_conn_id": luma_conn_id, "luma_task_id": luma_task_id, "reference": reference}
        return all(stored.get(name) in (None, value) for name, value in expected.items()) and (
            stored.get("luma_task_id") is not None or stored.get("reference") is not None
        )


@final
class JobFinished(TypedDict):
    """The job has succeeded: ``LumaTask.as_dict()``, and its request as ``LumaTask.request()``."""

    task: dict[str, Any]
    request: dict[str, str | None]


@final
class WaitFailed(TypedDict):
    """The job has failed, or the trigger has given up: ``LumaError.as_dict()``."""

    error: dict[str, Any]


@final
class CallbackReceived(TypedDict):
    """The receiver has authenticated a callback. Its contents remain unverified, even the job's id."""

    callback: dict[str, str]


@final
class DeferralExpired(TypedDict):
    """A trigger fired after its wait: the deferral's state, and the time in seconds since the epoch."""

    state: dict[str, Any]
    at: float


#: The events that resume a task, as JSON values. Their keys distinguish them.
Event = JobFinished | WaitFailed | CallbackReceived | DeferralExpired

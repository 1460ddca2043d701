# SPDX-License-Identifier: Apache-2.0
"""What a task has to do next, once it has been decided whether to submit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from airflow_provider_luma.core.deferral import DeferralState
    from airflow_provider_luma.core.job import LumaTask


class WaitForJob(NamedTuple):
    """
    Wait for a job, or return its result.

    :param luma_task_id: the job's id at Luma
    :param state: for a deferral
    :param finished: the job, if it has ended well already
    """

    luma_task_id: str
    state: DeferralState
    finished: LumaTask | None = None


class AwaitCallback(NamedTuple):
    """
    Defer until the callback of a submission whose answer was lost, or until a time in seconds since the epoch.

    A callback that came just before the deferral would be missed without checking the store from time to time.
    """

    state: DeferralState
    until: float


class Enqueue(NamedTuple):
    """
    Defer until it is possible to submit again, as Luma has refused for now. Times are in seconds since the epoch.

    :param state: with the time of the first attempt, and the beginning of an outage
    :param until: when to try for the last time
    :param not_before: until when the service wants no submissions
    """

    state: DeferralState
    until: float
    not_before: float


NextStep = WaitForJob | AwaitCallback | Enqueue

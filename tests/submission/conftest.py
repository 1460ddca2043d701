# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of submit-once."""

import pytest

from tests.support.metrics_recorder import recorder
from tests.support.operator_fixtures import context, frozen_before, modify
from tests.support.s3_fixtures import bucket, s3_endpoint
from tests.support.stored_clips import clip, s3_clip
from tests.support.submission_fixtures import (
    await_job_ends,
    callbacks_on,
    folder,
    leave_ended,
    leave_running,
    relay,
    sync_task,
    task,
)

pytest.register_assert_rewrite("tests.support.uploaded_once")

__all__ = [
    "await_job_ends",
    "bucket",
    "callbacks_on",
    "clip",
    "context",
    "folder",
    "frozen_before",
    "leave_ended",
    "leave_running",
    "modify",
    "recorder",
    "relay",
    "s3_clip",
    "s3_endpoint",
    "sync_task",
    "task",
]

# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of operators."""

from tests.support.batch_run import batch, folder, only_a, unopened_clips
from tests.support.metrics_recorder import recorder
from tests.support.operator_fixtures import context, frozen_before, modify
from tests.support.s3_fixtures import bucket, s3_endpoint
from tests.support.stored_clips import clip
from tests.support.submission_fixtures import sync_task

__all__ = [
    "batch",
    "bucket",
    "clip",
    "context",
    "folder",
    "frozen_before",
    "modify",
    "only_a",
    "recorder",
    "s3_endpoint",
    "sync_task",
    "unopened_clips",
]

# SPDX-License-Identifier: Apache-2.0
"""What holds for an uploaded input at every service: it is uploaded once, and its job submitted once."""

from __future__ import annotations

from contextlib import suppress

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaInsufficientCreditsError, LumaTimeoutError
from airflow_provider_luma.submission.store import UPLOAD_KEY
from tests.support.stored_clips import uploads
from tests.support.task_instance import Killed


class UploadedOnce:
    """Tests of a task ``run`` whose input is uploaded; a module has this fixture, and inherits them."""

    def test_retry_neither_uploads_nor_pays_again(self, luma, run):
        luma.configure(processing_seconds=3600)
        for _ in range(3):
            with pytest.raises(LumaTimeoutError):
                run.run_try(timeout=0.05)
        assert (luma.accepted, len(uploads(luma))) == (1, 1)

    def test_retry_after_a_refused_submission_uses_the_same_upload(self, luma, run):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            run.run_try()
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 1)

    def test_upload_that_has_expired_before_the_submission_is_repeated(self, luma, run):
        luma.configure(faults=["submit:refuse,code=402,times=1"])
        with pytest.raises(LumaInsufficientCreditsError):
            run.run_try()
        run.store.set(UPLOAD_KEY, {**run.store.get(UPLOAD_KEY), "expires_at": "2026-01-01T00:00:00+00:00"})
        run.run_try()
        assert (luma.accepted, len(uploads(luma))) == (1, 2)

    @pytest.mark.parametrize("crash", [(n, is_done) for n in (1, 2, 3) for is_done in (False, True)], ids=str)
    def test_task_that_is_killed_around_any_write_submits_once(self, luma, run, crash):
        run.store.crash_at(crash)
        with suppress(Killed):
            run.run_try()
        run.store.crash_at(None)
        with suppress(AirflowFailException):
            run.run_try()
        assert luma.accepted == (0 if crash == (2, True) else 1), "an intent alone is reported, and nothing is sent"

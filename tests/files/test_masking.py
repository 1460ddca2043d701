# SPDX-License-Identifier: Apache-2.0
"""What keeps signatures out of logs."""

from __future__ import annotations

import logging

from airflow_provider_luma.files.masking import without_debug_logs


def test_debug_logs_are_off_until_the_last_of_several_threads_is_done_and_then_as_before() -> None:
    before = logging.root.manager.disable
    first, second = without_debug_logs(), without_debug_logs()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.root.manager.disable == logging.DEBUG
    second.__exit__(None, None, None)
    assert logging.root.manager.disable == before

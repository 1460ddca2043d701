# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of operators."""

from tests.support.operator_fixtures import context, modify
from tests.support.stored_clips import clip

__all__ = ["clip", "context", "modify"]

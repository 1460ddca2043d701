# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of operators."""

from tests.support.operator_fixtures import context, modify

__all__ = ["context", "modify"]

# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of media."""

from tests.support.s3_fixtures import bucket, s3_endpoint

__all__ = ["bucket", "s3_endpoint"]

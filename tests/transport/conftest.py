# SPDX-License-Identifier: Apache-2.0
"""A plain environment, and certificates for servers and clients."""

from tests.support.network_fixtures import certificates, plain_environment

__all__ = ["certificates", "plain_environment"]

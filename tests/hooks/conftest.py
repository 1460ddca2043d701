# SPDX-License-Identifier: Apache-2.0
"""A plain environment, certificates for servers and clients, and how often connections are read."""

from tests.support.network_fixtures import certificates, connection_reads, plain_environment

__all__ = ["certificates", "connection_reads", "plain_environment"]

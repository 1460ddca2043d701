# SPDX-License-Identifier: Apache-2.0
"""Shared code for the demo, the tests and the benchmarks: local Airflows, a database to fill, and simulated time."""

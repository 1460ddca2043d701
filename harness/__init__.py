# SPDX-License-Identifier: Apache-2.0
"""What the demo, the tests and the benchmarks share: Airflows to start, a database to fill, and simulated time."""

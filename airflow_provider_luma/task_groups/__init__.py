# SPDX-License-Identifier: Apache-2.0
"""Task groups: several of our tasks as one line of a DAG."""

# SPDX-License-Identifier: Apache-2.0
"""Task groups: several Luma tasks as one line of a DAG."""

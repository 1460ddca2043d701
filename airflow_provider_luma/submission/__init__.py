# SPDX-License-Identifier: Apache-2.0
"""Submitting a job once, whatever happens between the tries of a task."""

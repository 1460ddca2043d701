# SPDX-License-Identifier: Apache-2.0
"""Waiting for jobs by polling their status."""

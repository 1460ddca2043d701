# SPDX-License-Identifier: Apache-2.0
"""Waiting for Luma jobs submitted elsewhere."""

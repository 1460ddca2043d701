# SPDX-License-Identifier: Apache-2.0
"""Callbacks of Luma: their signed addresses, their receiver, and the result page beside it."""

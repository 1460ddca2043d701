# SPDX-License-Identifier: Apache-2.0
"""Task decorators: Luma tasks whose parameters a function returns."""

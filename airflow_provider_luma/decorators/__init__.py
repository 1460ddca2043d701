# SPDX-License-Identifier: Apache-2.0
"""Task decorators: steps of a pipeline whose parameters a function writes."""

# SPDX-License-Identifier: Apache-2.0
"""Videos: what is checked before one costs anything, and how films are split into clips and joined again."""

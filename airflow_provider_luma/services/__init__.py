# SPDX-License-Identifier: Apache-2.0
"""The services that modify videos, a file for each: how its calls are written and read, what it takes and can."""

# SPDX-License-Identifier: Apache-2.0
"""The steps a pipeline is made of."""

# SPDX-License-Identifier: Apache-2.0
"""The receiver of Luma's callbacks, the result page and the gallery."""

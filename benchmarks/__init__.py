# SPDX-License-Identifier: Apache-2.0
"""Measurements, each side by side with its peers in one run. ``make bench`` runs them all."""

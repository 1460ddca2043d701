# SPDX-License-Identifier: Apache-2.0
"""HTTP: requests in workers, aiohttp in the triggerer, and the proxies and certificates that both share."""

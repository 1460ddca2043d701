# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark."""

from __future__ import annotations

from benchmarks import finish, import_cost, waiting

if __name__ == "__main__":
    import_cost.main()
    finish.main()
    waiting.main()

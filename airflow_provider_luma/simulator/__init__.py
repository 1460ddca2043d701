# SPDX-License-Identifier: Apache-2.0
"""
Local simulator of the Luma service, for development and tests without an account and without spending credits.

Run it with ``python -m airflow_provider_luma.simulator``, or start one inside a test::

    with Simulator(Settings(processing_seconds=0.2), port=0) as luma:
        ...  # luma.base_url, luma.sample_url, luma.configure(...), luma.jobs, luma.calls

The public names are imported lazily, so that importing the package alone loads neither FastAPI nor PyAV.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .account import Job
    from .faults import Fault
    from .journal import Call
    from .server import Simulator
    from .settings import Settings
    from .uploads import Upload

__all__ = ["Call", "Fault", "Job", "Settings", "Simulator", "Upload"]

#: What to do where PyAV or NumPy is missing.
INSTALL = "install the extra simulator of airflow-provider-luma"

_SUBMODULES = {
    "Call": "journal",
    "Fault": "faults",
    "Job": "account",
    "Settings": "settings",
    "Simulator": "server",
    "Upload": "uploads",
}


def __getattr__(name: str) -> Any:
    if name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f".{_SUBMODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name not in ("av", "numpy"):
            raise
        raise ImportError(f"The simulator renders real videos and needs {error.name}: {INSTALL}") from error
    return getattr(module, name)

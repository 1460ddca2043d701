# SPDX-License-Identifier: Apache-2.0
"""
The connection's form on Airflow 3.1, which asks the hook for it; later ones read it from ``get_provider_info``.

Both come from the same data.
"""

from __future__ import annotations

from typing import Any

import airflow_provider_luma


def get_connection_form_widgets() -> dict[str, Any]:
    """Return the form's fields for the connection's extra."""
    # Airflow's API server brings wtforms, or a stand-in. Numbers are texts: 3.1 has fields for whole numbers only.
    from wtforms import PasswordField, StringField  # type: ignore[import-untyped, unused-ignore]

    return {
        name: (PasswordField if field["schema"].get("format") == "password" else StringField)(
            field["label"], description=field["description"]
        )
        for name, field in _connection_type()["conn-fields"].items()
    }


def get_ui_field_behaviour() -> dict[str, Any]:
    """Return what the form calls Airflow's own fields of a connection, and which of them it hides."""
    return {name.replace("-", "_"): value for name, value in _connection_type()["ui-field-behaviour"].items()}


def _connection_type() -> dict[str, Any]:
    (luma,) = airflow_provider_luma.get_provider_info()["connection-types"]
    return dict(luma)

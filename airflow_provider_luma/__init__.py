# SPDX-License-Identifier: Apache-2.0
"""
Luma video modification as a step of an Airflow pipeline.

Every Airflow process calls :func:`get_provider_info` at start-up, so this module contains only data.
"""

from __future__ import annotations

from typing import Any

__version__ = "2.0.0"

_INTEGRATION = "Luma"

#: Fields for the connection's extra in the form of the UI.
_CONNECTION_FIELDS = {
    "service": {
        "label": "Service",
        "description": "kie (kie.ai's Luma API) or luma (Luma's own API). If empty, the host decides; without a host, "
        "it is kie.",
        "schema": {"type": ["string", "null"], "enum": ["kie", "luma", None]},
    },
    "callback_base_url": {
        "label": "Callback base URL",
        "description": "Public address of Airflow that kie.ai calls when a job ends, "
        "e.g. https://airflow.example.com. Leave empty to poll instead.",
        "schema": {"type": ["string", "null"], "format": "uri", "pattern": "^https?://"},
    },
    "webhook_secret": {
        "label": "Webhook secret",
        "description": "The webhook key of the kie.ai account, if signing is turned on there. Callbacks "
        "without a valid signature are then refused. Leave empty if signing is off.",
        "schema": {"type": ["string", "null"], "format": "password"},
    },
    "submission_store": {
        "label": "Submission store",
        "description": "A folder that all workers share, e.g. s3://my_aws@bucket/luma. It keeps the record of each "
        "submission across retries and Clears. Leave empty to use Airflow's task state (Airflow 3.3 and newer).",
        "schema": {"type": ["string", "null"]},
    },
    "upload_host": {
        "label": "Upload host",
        "description": "Where to upload input videos without a public address (kie.ai only). Leave empty for kie.ai's "
        "own host.",
        "schema": {"type": ["string", "null"]},
    },
    "sign_inputs": {
        "label": "Sign inputs for (seconds)",
        "description": "Instead of uploading an input video, pass Luma an address signed by the video's storage, "
        "valid for this many seconds, e.g. 21600. Leave empty to upload.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "min_credits": {
        "label": "Credits to keep",
        "description": "Submit nothing while the account has fewer credits than this (kie.ai only). Leave empty for no "
        "limit.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "requests_per_second": {
        "label": "Status checks per second",
        "description": "Maximum rate of status checks for the account (if empty, 10 for kie.ai, 1 for Luma's own API).",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "timeout": {
        "label": "Timeout",
        "description": "Timeout of a call to Luma, in seconds (30 if empty).",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
}

#: Airflow's own connection fields in that form.
_UI_FIELD_BEHAVIOUR = {
    "hidden-fields": ["login"],
    "relabeling": {"password": "API key", "schema": "Scheme"},
    "placeholders": {
        "host": "https://api.kie.ai (if empty)",
        "schema": "https",
        "password": "the API key of your kie.ai or Luma account",
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return what this package provides, in the format of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-luma",
        "name": "Luma",
        "description": "Modify videos with Luma as a step of a pipeline, through "
        "`kie.ai <https://docs.kie.ai/luma-api/quickstart>`__ or "
        "`Luma's own API <https://docs.agents.lumalabs.ai>`__.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://docs.kie.ai/luma-api/quickstart",
                "tags": ["service"],
            }
        ],
        "hooks": [_modules("airflow_provider_luma.hooks.luma")],
        "operators": [
            _modules(*(f"airflow_provider_luma.operators.{name}" for name in ("luma", "transfers", "video")))
        ],
        "sensors": [_modules("airflow_provider_luma.sensors.luma")],
        "triggers": [_modules("airflow_provider_luma.triggers.luma")],
        "task-decorators": [
            {"name": "luma_modify", "class-name": "airflow_provider_luma.decorators.luma.luma_modify_task"}
        ],
        "extra-links": ["airflow_provider_luma.links.luma.LumaResultLink"],
        "plugins": [{"name": "luma", "plugin-class": "airflow_provider_luma.plugins.luma.LumaPlugin"}],
        "connection-types": [
            {
                "connection-type": "luma",
                "hook-class-name": "airflow_provider_luma.hooks.luma.LumaHook",
                "hook-name": "Luma",
                "ui-field-behaviour": _UI_FIELD_BEHAVIOUR,
                "conn-fields": _CONNECTION_FIELDS,
            }
        ],
    }


def _modules(*modules: str) -> dict[str, Any]:
    return {"integration-name": _INTEGRATION, "python-modules": list(modules)}

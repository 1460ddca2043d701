# SPDX-License-Identifier: Apache-2.0
"""
Luma video modification as a step of an Airflow pipeline.

Airflow reads :func:`get_provider_info` in every process it starts, so nothing heavier than data is here.
"""

from __future__ import annotations

from typing import Any

__version__ = "1.1.0"

_INTEGRATION = "Luma"

#: Fields of the connection's extra in the form of the UI.
_CONNECTION_FIELDS = {
    "service": {
        "label": "Service",
        "description": "kie (kie.ai's Luma API) or luma (Luma's own API). Leave empty to go by the host; without one, "
        "it is kie.",
        "schema": {"type": ["string", "null"], "enum": ["kie", "luma", None]},
    },
    "callback_base_url": {
        "label": "Callback base URL",
        "description": "Public address of Airflow, e.g. https://airflow.example.com, for Luma to call "
        "when a job has ended. Leave empty to poll Luma instead.",
        "schema": {"type": ["string", "null"], "format": "uri", "pattern": "^https?://"},
    },
    "webhook_secret": {
        "label": "Webhook secret",
        "description": "The webhook key of the Luma account, if signing is turned on there: callbacks "
        "without its signature are then refused. Leave empty if it is not.",
        "schema": {"type": ["string", "null"], "format": "password"},
    },
    "submission_store": {
        "label": "Submission store",
        "description": "A folder that all workers share, e.g. s3://my_aws@bucket/luma, to remember what was submitted "
        "over every retry and Clear. Leave empty for Airflow's own task state (Airflow 3.3 and newer).",
        "schema": {"type": ["string", "null"]},
    },
    "upload_host": {
        "label": "Upload host",
        "description": "Where kie.ai's input videos without a public address are uploaded. Leave empty for its own.",
        "schema": {"type": ["string", "null"]},
    },
    "sign_inputs": {
        "label": "Sign inputs for (seconds)",
        "description": "Instead of uploading an input video, give Luma an address signed by its storage, valid for "
        "so many seconds, e.g. 21600. Leave empty to upload.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "min_credits": {
        "label": "Credits to keep",
        "description": "Submit nothing while the account holds fewer credits. Leave empty for no such limit.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "requests_per_second": {
        "label": "Status checks per second",
        "description": "How often the account may be asked about its jobs (10 if empty).",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
    "timeout": {
        "label": "Timeout",
        "description": "Seconds before a call to Luma is given up (30 if empty).",
        "schema": {"type": ["number", "null"], "exclusiveMinimum": 0},
    },
}

#: Airflow's own fields of a connection, in that form.
_UI_FIELD_BEHAVIOUR = {
    "hidden-fields": ["login"],
    "relabeling": {"password": "API key", "schema": "Scheme"},
    "placeholders": {
        "host": "https://api.kie.ai (leave empty for the service itself)",
        "schema": "https",
        "password": "the key of your Luma account",
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return what this package brings, in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-luma",
        "name": "Luma",
        "description": "Modify videos with `Luma <https://docs.kie.ai/luma-api/quickstart>`__ as a step of a pipeline.",
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

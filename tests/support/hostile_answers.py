# SPDX-License-Identifier: Apache-2.0
"""Answers of any shape, as JSON: with characters, numbers and nesting that one serialiser or another does not take."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from airflow_provider_luma.core.job import Response

hostile_texts = st.lists(
    st.sampled_from(["\x00", "\ud83d", "\udcff", "\ude00", "a", "//u:p@h/"]), min_size=1, max_size=8
).map("".join)

texts = st.text() | hostile_texts

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**62) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)

_FIELDS = ["taskId", "successFlag", "response", "createTime", "completeTime", "errorCode", "errorMessage"]

_asked = st.fixed_dictionaries({"prompt": texts, "videoUrl": texts, "callBackUrl": texts})
_record = st.fixed_dictionaries({}, optional=dict.fromkeys([*_FIELDS, "resultUrls", "originUrls"], values))
_ended = st.fixed_dictionaries(
    {"successFlag": st.integers(1, 4), "errorCode": values, "errorMessage": texts},
    optional={"taskId": texts, "response": _record | _record.map(json.dumps), "paramJson": _asked.map(json.dumps)},
)

envelopes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "code": st.sampled_from([200, "200", 401, 402, 422, 500, None]) | values,
        "msg": texts | values,
        "data": values | _record | _ended,
    }
)

responses = st.builds(
    Response,
    st.sampled_from([200, 201, 301, 404, 429, 500]),
    envelopes.map(lambda envelope: json.dumps(envelope).encode()),
    st.none() | st.floats(0, 1e9),
    st.none() | texts,
)

_OTHERS = ["output", "created_at", "failure_reason", "failure_code", "type"]


def generations(luma_task_id: str) -> st.SearchStrategy[Response]:
    """Return responses of Luma's own API to a status check of a job."""
    jobs = st.fixed_dictionaries(
        {"id": st.just(luma_task_id), "state": st.sampled_from(["completed", "failed"]) | texts | values},
        optional={
            **dict.fromkeys(_OTHERS, texts | values),
            "output": st.lists(values | st.just({"type": "video", "url": "\ud83d"})),
        },
    )
    return jobs.map(lambda job: Response(200, json.dumps(job).encode()))

# SPDX-License-Identifier: Apache-2.0
"""For any answer of the service, all that is made of it survives every way on which Airflow stores and sends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from sqlalchemy import Connection, bindparam, create_engine, text
from sqlalchemy.dialects.postgresql import JSONB

from airflow_provider_luma.core.decision import SubmissionRecord
from airflow_provider_luma.core.deferral import DeferralState, JobFinished, WaitFailed
from airflow_provider_luma.core.job import LumaTask, Response
from airflow_provider_luma.exceptions import LumaError
from airflow_provider_luma.services import SERVICES
from airflow_provider_luma.services.base import Service
from tests.support.hostile_answers import generations, responses

pytestmark = pytest.mark.xdist_group("stored values")


@pytest.fixture(scope="module")
def connection(database: dict[str, str]) -> Iterator[Connection]:
    """A connection to PostgreSQL; without one on this machine, to SQLite."""
    address = database.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite://")
    with create_engine(address).connect() as connection:
        yield connection


def outcomes(service: Service, response: Response) -> list[Any]:
    """Return the trigger's event, the XComs, the deferral's state and the record that an answer leads to."""
    made: list[Any] = []
    try:
        task = service.read_status(response, "abc")
    except LumaError as error:
        made += [WaitFailed(error=error.as_dict()), {**error.as_dict(), "remedy": error.remedy}, str(error)]
    else:
        assert isinstance(task, LumaTask)
        made += [JobFinished(task=task.as_dict(), request=task.request()), WaitFailed(error=task.failure().as_dict())]
    try:
        luma_task_id = service.read_submission(response)
    except LumaError as error:
        made += [{**error.as_dict(), "remedy": error.remedy}, str(error)]
    else:
        made += [
            SubmissionRecord("reference", "fingerprint", luma_task_id, 2, 1).as_dict(),
            DeferralState(luma_task_id, end_time=1.0).as_kwargs(),
        ]
    return made


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
@settings(max_examples=300)
@given(response=responses | generations("abc"))
def test_whatever_an_answer_leads_to_can_be_sent_and_stored(
    connection: Connection, service: Service, response: Response
) -> None:
    made = outcomes(service, response)

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made)) == made
    assert json.loads(json.dumps(made, allow_nan=False, ensure_ascii=False).encode("utf-8")) == made
    if connection.dialect.name == "postgresql":
        statement = text("select :made, :line").bindparams(bindparam("made", type_=JSONB))
        stored, line = connection.execute(statement, {"made": made, "line": json.dumps(made)}).one()
        assert stored == json.loads(line) == made

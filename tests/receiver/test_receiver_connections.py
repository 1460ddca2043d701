# SPDX-License-Identifier: Apache-2.0
"""Which connections callbacks are taken over, and what the API server's log says where they are refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from airflow.utils.session import create_session
from sqlalchemy import delete, select, text

from airflow_provider_luma import receiver
from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.receiver import connections, lookups
from harness.api_server import KEY, proof
from harness.metadata_db import operator_awaiting_job, sensor_awaiting_job

needs_teams = pytest.mark.skipif(not hasattr(Connection, "team_name"), reason="Airflow 3.1 has no teams")


@pytest.fixture
def warnings(caplog):
    """What the receiver has warned of, so far."""
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith(receiver.__name__)
    ]


@pytest.fixture
def store(metadata_db) -> Iterator:
    """Stores connections in the metadata database."""

    def _store(conn_id: str, **values: object) -> None:
        with create_session() as session:
            session.add(Connection(conn_id=conn_id, **{"conn_type": "luma", "password": KEY, **values}))

    yield _store
    with create_session() as session:
        for model in (Connection, Team):
            session.execute(delete(model))


@contextmanager
def unreadable_connections() -> Iterator[None]:
    """Have the database fail as far as connections are concerned."""
    with create_session() as session:
        session.execute(text("ALTER TABLE connection RENAME TO connection_away"))
    try:
        yield
    finally:
        with create_session() as session:
            session.execute(text("ALTER TABLE connection_away RENAME TO connection"))


async def test_connection_in_the_metadata_database_is_found(api_server, store):
    store("stored")
    assert (await api_server.callback(proof(conn_id="stored"))).status_code == 200


@pytest.mark.parametrize(
    ("conn_id", "said"),
    [
        ("a_database", "its type is 'postgres' here; change that to luma"),
        ("luma_keyless", "has no API key"),
        ("luma_invalid", "timeout in its extra"),
    ],
)
async def test_log_says_why_callbacks_for_a_connection_are_refused(
    api_server, other_connections, warnings, conn_id, said
):
    assert (await api_server.callback(proof(conn_id=conn_id))).status_code == 403
    (warning,) = warnings()
    assert f"Callbacks for connection '{conn_id}' are refused" in warning
    assert said in warning


async def test_log_says_that_a_connection_cannot_be_decrypted(api_server, store, warnings):
    store("encrypted_elsewhere")
    with create_session() as session:
        session.execute(text("UPDATE connection SET password = 'gAAAAAB', is_encrypted = 1"))
    assert (await api_server.callback(proof(conn_id="encrypted_elsewhere"))).status_code == 403
    (warning,) = warnings()
    assert "'encrypted_elsewhere'" in warning
    assert "Fernet key" in warning


@pytest.mark.parametrize("uri", ["luma://:s3cret/k9y@", "luma://:4711/k9y@"])
async def test_log_says_that_the_key_in_a_uri_is_not_percent_encoded(api_server, warnings, monkeypatch, uri):
    monkeypatch.setenv("AIRFLOW_CONN_PASTED", uri)
    assert (await api_server.callback(proof(conn_id="pasted"))).status_code == 403
    (warning,) = warnings()
    assert "'pasted'" in warning
    assert "percent-encode" in warning
    assert [part for part in ("s3cret", "k9y", "4711") if part in warning] == []


async def test_same_warning_is_logged_once_a_minute_for_each_connection(
    api_server, other_connections, warnings, monkeypatch
):
    monkeypatch.setattr(lookups, "CONNECTION_TTL", 0.0)
    for _ in range(3):
        await api_server.callback(proof(conn_id="a_database"))
        await api_server.callback(proof(conn_id="A_Database"))
        await api_server.callback(proof(conn_id="luma_keyless"))
    assert len(warnings()) == 2
    monkeypatch.setattr(connections, "WARNING_INTERVAL", 0.0)
    await api_server.callback(proof(conn_id="a_database"))
    assert len(warnings()) == 3


async def test_connections_that_do_not_exist_are_logged_once_a_minute_together(api_server, warnings):
    for number in range(5):
        assert (await api_server.callback(proof(conn_id=f"luma_{number}"))).status_code == 403
    (warning,) = warnings()
    assert "'luma_0'" in warning


async def test_callbacks_are_unavailable_only_while_connections_cannot_be_read(api_server, store, warnings):
    store("stored")
    with unreadable_connections():
        for conn_id in ("luma_default", "stored"):
            assert (await api_server.callback(proof(conn_id=conn_id))).status_code == 503
    (warning,) = warnings()
    assert "Cannot read connections; asking Luma to repeat its callbacks" in warning
    for conn_id in ("luma_default", "stored"):
        assert (await api_server.callback(proof(conn_id=conn_id))).status_code == 200


async def test_connection_that_airflow_calls_missing_because_of_an_outage_is_unavailable(api_server, store):
    store("stored")
    await api_server.callback(proof())  # from here on it is known which connections there are
    with unreadable_connections():
        assert (await api_server.callback(proof(conn_id="stored"))).status_code == 503
    assert (await api_server.callback(proof(conn_id="stored"))).status_code == 200


@needs_teams
class TestTeams:
    @pytest.fixture(autouse=True)
    def teams(self, monkeypatch, store) -> None:
        """Airflow has two teams."""
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        with create_session() as session:
            session.add_all([Team(name="films"), Team(name="news")])

    async def test_callback_for_a_teams_connection_is_taken(self, api_server, store):
        store("of_films", team_name="films")
        assert (await api_server.callback(proof(conn_id="of_films"))).status_code == 200

    async def test_teams_connection_in_the_environment_is_found_beside_a_global_one(self, api_server, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN__NEWS___LUMA_DEFAULT", "luma://:key-of-news@")
        assert (await api_server.callback(proof(key="key-of-news"))).status_code == 200
        assert (await api_server.callback(proof())).status_code == 200
        assert (await api_server.callback(proof(key="another-key"))).status_code == 403

    @pytest.fixture
    def dag_of(self) -> Iterator[Callable[[str, str | None], None]]:
        """Gives a DAG to a team."""

        def _dag_of(dag_id: str, team: str | None) -> None:
            with create_session() as session:
                bundle = DagBundleModel(name=f"bundle_of_{dag_id}")
                if team is not None:
                    bundle.teams = [session.get(Team, team)]
                session.add(bundle)
                session.flush()
                session.add(DagModel(dag_id=dag_id, bundle_name=bundle.name, fileloc="", is_paused=False))

        yield _dag_of
        with create_session() as session:
            session.execute(delete(DagModel))
            for bundle in session.scalars(select(DagBundleModel)):
                bundle.teams = []
                session.delete(bundle)

    @pytest.mark.parametrize("proven_by", ["films", "news", None])
    async def test_token_of_one_team_resumes_no_task_of_another(
        self, metadata_db, api_server, monkeypatch, dag_of, proven_by
    ):
        """Each team, and those without one, have their own luma_default, and wait for the same job."""
        tasks = {}
        for team in ("films", "news", None):
            dag_of(f"dag_of_{team}", team)
            (tasks[team],) = metadata_db.defer(sensor_awaiting_job(), dag_id=f"dag_of_{team}")
        for team in ("films", "news"):
            monkeypatch.setenv(f"AIRFLOW_CONN__{team.upper()}___LUMA_DEFAULT", f"luma://:key-of-{team}@")
        key = KEY if proven_by is None else f"key-of-{proven_by}"
        assert (await api_server.callback(proof(key=key))).status_code == 200
        await api_server.close()
        assert metadata_db.resumed() == {tasks[proven_by]}

    async def test_token_of_a_global_connection_resumes_the_tasks_of_teams_that_have_none_of_their_own(
        self, metadata_db, api_server, monkeypatch, dag_of
    ):
        tasks = {}
        for team in ("films", "news", None):
            dag_of(f"dag_of_{team}", team)
            (tasks[team],) = metadata_db.defer(sensor_awaiting_job(), dag_id=f"dag_of_{team}")
        monkeypatch.setenv("AIRFLOW_CONN__NEWS___LUMA_DEFAULT", "luma://:key-of-news@")
        await api_server.callback(proof())
        await api_server.close()
        assert metadata_db.resumed() == {tasks["films"], tasks[None]}

    @pytest.mark.parametrize("has_dag_row", [True, False])
    async def test_callback_resumes_the_task_that_has_submitted_whatever_key_it_was_given(
        self, metadata_db, api_server, monkeypatch, dag_of, has_dag_row
    ):
        """A worker may read the global connection where the API server finds the team's."""
        if has_dag_row:
            dag_of("films_of_a_team", "films")
        monkeypatch.setenv("AIRFLOW_CONN__FILMS___LUMA_DEFAULT", "luma://:key-of-films@")
        reference = new_reference()
        (task,) = metadata_db.defer(operator_awaiting_job(reference=reference), dag_id="films_of_a_team")
        assert (await api_server.callback(proof(reference))).status_code == 200
        await api_server.close()
        assert metadata_db.resumed() == {task}

    async def test_signature_that_a_team_requires_is_not_waived_by_a_connection_with_the_same_key(
        self, metadata_db, api_server, connect, monkeypatch, dag_of
    ):
        tasks = {}
        for team in ("films", None):
            dag_of(f"dag_of_{team}", team)
            (tasks[team],) = metadata_db.defer(sensor_awaiting_job(), dag_id=f"dag_of_{team}")
        signed = {"conn_type": "luma", "password": KEY, "extra": {"webhook_secret": "a secret"}}
        monkeypatch.setenv("AIRFLOW_CONN__FILMS___LUMA_DEFAULT", json.dumps(signed))
        assert (await api_server.callback(proof())).status_code == 200
        await api_server.close()
        assert metadata_db.resumed() == {tasks[None]}

    async def test_callback_is_recorded_in_the_store_of_each_connection_that_its_token_proves(
        self, api_server, connect, monkeypatch, tmp_path
    ):
        kept = {"conn_type": "luma", "password": KEY, "extra": {"submission_store": str(tmp_path / "films")}}
        monkeypatch.setenv("AIRFLOW_CONN__FILMS___LUMA_DEFAULT", json.dumps(kept))
        reference = new_reference()
        assert (await api_server.callback(proof(reference))).status_code == 200
        assert (tmp_path / "films" / "callbacks" / f"{reference}.json").exists()

    async def test_log_says_that_a_teams_connection_needs_multi_team(self, api_server, store, monkeypatch, warnings):
        store("of_films", team_name="films")
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "False")
        assert (await api_server.callback(proof(conn_id="of_films"))).status_code == 403
        (warning,) = warnings()
        assert "'of_films'" in warning
        assert "belongs to team 'films', but [core] multi_team is off" in warning

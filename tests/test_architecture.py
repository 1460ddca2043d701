# SPDX-License-Identifier: Apache-2.0
"""The layers of the package: imports run one way, heavy libraries stay where they belong, and functions stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import airflow_provider_luma

PACKAGE = Path(airflow_provider_luma.__file__).parent
NAME = PACKAGE.name

#: From top to bottom. A layer imports those below it, and itself.
LAYERS = (
    ("testing",),
    ("task_groups", "decorators"),
    ("operators", "sensors"),
    ("asset_events", "lineage"),
    ("triggers", "links", "plugins"),
    ("hooks",),
    ("receiver",),
    ("submission", "waiting", "files", "media"),
    ("client", "async_client"),
    ("metrics",),
    ("transport",),
    ("connection",),
    ("services",),
    ("core", "exceptions"),
    ("compat",),
)

#: Import paths of version 1.1.0, from which the package itself imports nothing.
OLD_PATHS = {"protocol", "protocol_files", "hooks.luma_async"}
RANK = {name: rank for rank, layer in enumerate(reversed(LAYERS)) for name in layer}

HTTP_LIBRARIES = {"aiohttp", "httpx", "requests", "urllib3"}

#: Modules that read and write videos, and are of no use without PyAV.
PYAV = tuple(
    f"media.{name}"
    for name in ("added_sound", "film_reader", "join", "pictures", "probe", "sound", "split", "time_stamps")
)


@cache
def modules() -> dict[str, Path]:
    """Return the package's modules but the simulator's, named without the package."""
    files = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    return {name: file for name, file in files.items() if not name.startswith("simulator")}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(tree: ast.AST, *, inside_functions: bool, for_types: bool = False) -> Iterator[str]:
    """
    Yield the names that a module imports when it runs, as absolute dotted names.

    :param for_types: also those that it imports for the type checker alone
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif is_for_types_only(node) and not for_types:
            continue
        elif inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports_of(node, inside_functions=inside_functions, for_types=for_types)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(name: str, *, inside_functions: bool = True, for_types: bool = False) -> frozenset[str]:
    return frozenset(imports_of(parsed(modules()[name]), inside_functions=inside_functions, for_types=for_types))


@cache
def own(name: str, *, inside_functions: bool = True, for_types: bool = False) -> frozenset[str]:
    """Return the modules of this package that a module imports."""
    found = set()
    for imported in imports(name, inside_functions=inside_functions, for_types=for_types):
        if imported.startswith(f"{NAME}."):
            inner = imported.removeprefix(f"{NAME}.")
            found.add(inner if inner in modules() else inner.rpartition(".")[0] or inner)
    return frozenset(found)


def foreign(name: str) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(name)} - {NAME}


def foreign_at_module_level(name: str) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(name, inside_functions=False)} - {NAME}


def layer_of(name: str) -> str:
    """Return the package that a module belongs to; the errors, which are public, belong to the core."""
    package = name.partition(".")[0]
    return "core" if package == "exceptions" else package


def layered() -> list[str]:
    return sorted(name for name in modules() if name.partition(".")[0] in RANK)


def test_every_module_belongs_to_a_layer():
    assert set(modules()) - set(layered()) == {"__init__", *OLD_PATHS} - set(layered())


@pytest.mark.parametrize("name", layered())
def test_module_imports_only_its_own_layer_and_those_below(name):
    """The type checker's imports included. The simulator is no layer: who imports it is tested below."""
    rank = RANK[name.partition(".")[0]]
    others = [other for other in own(name, for_types=True) if not other.startswith("simulator")]
    assert [other for other in others if RANK[other.partition(".")[0]] > rank] == []


def test_modules_import_each_other_without_a_cycle():
    TopologicalSorter({name: own(name) - {name} for name in modules()}).prepare()


def test_packages_import_each_other_without_a_cycle():
    graph: dict[str, set[str]] = {}
    for name in modules():
        package = layer_of(name)
        graph.setdefault(package, set()).update({layer_of(other) for other in own(name, for_types=True)} - {package})
    TopologicalSorter(graph).prepare()


def test_http_libraries_are_imported_by_transport_hooks_and_files_alone():
    users = {name.partition(".")[0] for name in modules() if foreign(name) & HTTP_LIBRARIES}
    assert users == {"transport", "hooks", "files"}


def test_pyav_is_imported_by_media_alone():
    users = {name for name in modules() if "av" in foreign(name)}
    assert users == {"media.opening", *PYAV}


def test_operators_decode_in_another_process():
    outside = {name: own(name) & set(PYAV) for name in modules() if not name.startswith("media.")}
    assert {name for name, used in outside.items() if used} == set()


def test_what_needs_pyav_at_module_level_is_not_imported_at_module_level():
    needy = {name for name in modules() if "av" in foreign_at_module_level(name)}
    assert needy <= set(PYAV)
    assert [name for name in modules() if name not in PYAV and own(name, inside_functions=False) & set(PYAV)] == []


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith(("core", "services", "exceptions"))])
def test_core_and_services_import_neither_airflow_nor_what_does_io(name):
    # The rate limiter waits in an event loop, by that loop's clock.
    waits = set() if name == "core.rate_limit" else {"asyncio"}
    assert foreign(name) & {"airflow", "av", "os", "time", *waits, *HTTP_LIBRARIES} == set()
    assert {layer_of(other) for other in own(name)} <= {"core", "services"}


def test_what_is_to_be_read_first_can_be_read_in_an_hour():
    """All that decides, with the first service."""
    files = [file for name, file in modules().items() if name.startswith("core") or name == "services.kie"]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 2800


@pytest.mark.parametrize(
    "name", [name for name in layered() if name.partition(".")[0] in ("operators", "sensors", "links", "decorators")]
)
def test_what_a_dag_file_imports_leaves_protocol_submission_and_hooks_for_the_run(name):
    others = own(name, inside_functions=False) - {"files.destination_names"}
    packages = {other.partition(".")[0] for other in others}
    assert packages <= {"operators", "links", "core", "exceptions", "compat"}


def test_names_that_airflow_has_moved_come_from_compat_and_not_from_a_provider_that_must_be_new_enough():
    moved = ("airflow.providers.common.compat.sdk", "airflow.providers.common.compat.connection")
    assert [name for name in modules() if any(imported.startswith(moved) for imported in imports(name))] == []


def handles_missing_airflow(node: ast.AST) -> bool:
    """Tell whether a statement tries to import something of Airflow, and goes on without it."""
    if not isinstance(node, ast.Try):
        return False
    caught = {name.id for handler in node.handlers for name in ast.walk(handler) if isinstance(name, ast.Name)}
    tried = imports_of(ast.Module(node.body, []), inside_functions=True)
    return bool(caught & {"ImportError", "ModuleNotFoundError"}) and any(name.startswith("airflow.") for name in tried)


def test_airflows_versions_are_told_apart_in_compat_alone():
    asking = {name for name in modules() if "airflow.version.version" in imports(name)}
    trying = {name for name in modules() if any(map(handles_missing_airflow, ast.walk(parsed(modules()[name]))))}
    assert asking == trying == {"compat"}


def test_only_two_modules_of_the_receiver_and_the_server_of_tests_import_airflows_database_models():
    users = [name for name in modules() if any(i.startswith(("airflow.models.t", "sqlalchemy")) for i in imports(name))]
    assert sorted(users) == ["receiver.connections", "receiver.resume", "testing.dag_server"]


def test_nothing_imports_from_the_paths_of_an_earlier_version():
    assert [name for name in modules() if own(name) & OLD_PATHS] == []


@pytest.mark.parametrize(
    "path",
    [
        "hooks.luma.LumaHook",
        "hooks.luma_async.LumaAsyncHook",
        "links.luma.LumaResultLink",
        "operators.luma.LumaDownloadOperator",
        "operators.luma.LumaModifyOperator",
        "operators.luma.LumaUploadOperator",
        "operators.transfers.LumaDownloadOperator",
        "operators.transfers.LumaUploadOperator",
        "operators.video.VideoJoinOperator",
        "operators.video.VideoSplitOperator",
        "protocol.LumaTask",
        "protocol.LumaTaskStatus",
        "protocol_files.LumaUpload",
        "sensors.luma.LumaTaskSensor",
        "task_groups.video.modify_long_video",
        "triggers.luma.LumaTaskTrigger",
    ],
)
def test_what_version_1_1_0_documents_is_still_there(path):
    module, _, name = path.rpartition(".")
    assert hasattr(import_module(f"{NAME}.{module}"), name)


def test_nothing_but_the_fixtures_for_tests_imports_the_simulator():
    users = {name for name in modules() if any(".simulator" in imported for imported in imports(name, for_types=True))}
    assert users == {"testing.__init__", "testing.dag_runs"}


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith("testing")])
def test_fixtures_for_tests_import_airflow_and_the_simulator_when_they_are_used(name):
    """Pytest imports them before anything has said where Airflow's home is."""
    assert "airflow" not in foreign_at_module_level(name)
    assert {other.partition(".")[0] for other in own(name, inside_functions=False)} <= {"testing"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_functions_stay_small(file):
    for node in ast.walk(parsed(file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 40, f"{node.name} is too long"


@pytest.mark.parametrize(
    ("folder", "others"),
    [("tests", ("benchmarks",)), ("benchmarks", ("tests",)), ("harness", ("tests", "benchmarks", "demo"))],
)
def test_tests_and_benchmarks_share_the_harness_and_nothing_else(folder, others):
    files = [file for file in (PACKAGE.parent / folder).rglob("*.py") if not file.is_symlink()]
    assert files
    for file in files:
        roots = {name.partition(".")[0] for name in imports_of(parsed(file), inside_functions=True)}
        assert roots.isdisjoint(others), file

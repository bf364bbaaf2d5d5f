"""docs/reference.md and docs/architecture.md say what the code says, no less and no more."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import pytest
from starlette.datastructures import Secret
from starlette.routing import Route

import gateway
import leases
from gateway.app import create_app
from gateway.cli import main
from gateway.cli.exits import Exit, exit_code_of
from gateway.client.errors import ClientError
from gateway.embed import MpackAnswer
from gateway.environment import NamedField, named_fields
from gateway.errors import answer_for
from gateway.metrics import Metrics
from gateway.packs.push import PushResult
from gateway.packs.segments import StoreResult
from gateway.routes import leases as lease_routes
from gateway.settings import Settings
from gateway.wire import messages
from leases.clock import SystemClock
from leases.errors import Conflict, Failure
from leases.model import Event
from leases.reconcile import Finding
from leases.steps import Step

TOP = Path(__file__).resolve().parents[2]
REFERENCE = (TOP / "docs/reference.md").read_text()
ARCHITECTURE = (TOP / "docs/architecture.md").read_text()
README = (TOP / "README.md").read_text()
PAGES = {"README.md": README, "reference.md": REFERENCE, "architecture.md": ARCHITECTURE}


def part(heading: str, text: str = REFERENCE) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.split(" ", maxsplit=1)[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{2,{len(level)}}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    assert found is not None, heading
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """The tables' rows whose first cell is code: cells as text, code marks taken off the first."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            yield [cells[0].strip("`"), *cells[1:]]


def codes(text: str) -> set[str]:
    """Every word in code marks."""
    return set(re.findall(r"`([^`\n]+)`", text))


# Settings. ---------------------------------------------------------------------------------------


def shown(setting: NamedField) -> str:
    """A default as a person reads it; its unit is in its name."""
    value = setting.default
    if setting.required:
        return "needed"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    if "_seconds" in setting.name:
        hours = value >= 3600 and value % 3600 == 0
        return f"{value / 3600:g} h" if hours else f"{value:g} s"
    if "bytes" in setting.name:
        return size(int(value))
    return str(value) if setting.name == "port" else f"{value:,}"


def size(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count % 1024 or count < 1024:
            return f"{count} {unit}"
        count //= 1024
    return f"{count} GiB"


def test_every_setting_stands_there_with_its_default() -> None:
    told = {row[0]: row[1] for row in rows(part("## Settings"))}
    assert told == {setting.variable: shown(setting) for setting in named_fields(Settings)}


@pytest.mark.parametrize("page", PAGES)
def test_no_unknown_setting_is_named(page: str) -> None:
    known = {setting.variable for setting in named_fields(Settings)}
    named = set(re.findall(r"\bMPACK_[A-Z][A-Z_]*[A-Z]", PAGES[page]))
    assert {name.removesuffix("_FILE") for name in named} <= known


# Commands. ---------------------------------------------------------------------------------------


def commands(group: click.Group = main, path: str = "mpack-gateway") -> dict[str, click.Command]:
    """Every verb that does something, by how it is called."""
    found: dict[str, click.Command] = {}
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                found |= commands(command, f"{path} {name}")
            else:
                found[f"{path} {name}"] = command
    return found


def test_every_command_has_its_place() -> None:
    headings = re.findall(r"^### (mpack-gateway .*)$", REFERENCE, re.MULTILINE)
    assert sorted(headings) == sorted(commands())


@pytest.mark.parametrize("path", commands())
def test_every_option_stands_there(path: str) -> None:
    options = [one for one in commands()[path].params if isinstance(one, click.Option)]
    told = {row[0].split(" ")[0]: row[1] for row in rows(part(f"### {path}"))}
    assert list(told) == [option.opts[0] for option in options]
    for option in options:
        default: object = option.default
        if isinstance(default, int | float | str) and not isinstance(default, bool) and default:
            text = f"{default:g}" if isinstance(default, float) else str(default)
            assert f"({text})" in told[option.opts[0]].replace("`", ""), option.name


@pytest.mark.parametrize("page", PAGES)
def test_no_unknown_command_is_named(page: str) -> None:
    for words in re.findall(r"(?:`|\$ )mpack-gateway ([a-z][a-z ]*)", PAGES[page]):
        called = f"mpack-gateway {words}".strip()
        assert any(f"{called} ".startswith(f"{known} ") for known in commands()), called


def test_the_exit_codes_are_the_codes() -> None:
    told = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", REFERENCE, re.MULTILINE)
    assert [(int(code), name) for code, name in told] == [(one.value, one.name) for one in Exit]


# Routes. -----------------------------------------------------------------------------------------


def routes() -> dict[str, Route]:
    app = create_app(Settings(database_url=Secret("postgresql://nobody@nowhere/nothing")))
    found = {}
    for route in app.routes:
        assert isinstance(route, Route)
        (method,) = (route.methods or set()) - {"HEAD"}
        found[f"{method} {route.path.replace(':path}', '}')}"] = route
    return found


def test_every_route_has_its_place() -> None:
    assert sorted(re.findall(r"^### `([A-Z]+ /.*)`$", REFERENCE, re.MULTILINE)) == sorted(routes())


REPO = "/{owner}/{repo}"
FETCH_ANSWER = {*MpackAnswer.__annotations__, "branch_heads"}


def names(*structures: type[msgspec.Struct]) -> set[str]:
    return {field.name for one in structures for field in msgspec.structs.fields(one)}


@pytest.mark.parametrize(
    "route, keys",
    [
        (f"POST {REPO}/filter-objects", names(messages.FilterObjectsRequest)),
        (f"POST {REPO}/negotiate", names(messages.NegotiateRequest)),
        (f"POST {REPO}/presign", names(messages.PresignRequest)),
        (f"POST {REPO}/tags", names(messages.TagsRequest, messages.PushTag)),
        (f"POST {REPO}/push/objects", names(messages.PushObjectsRequest, messages.PushObject)),
        (f"POST {REPO}/push/objects", {field.name for field in fields(StoreResult)}),
        (f"POST {REPO}/push", names(messages.PushRequest, messages.Bundle)),
        (f"POST {REPO}/push", {field.name for field in fields(PushResult)}),
        (f"POST {REPO}/fetch/mpack", names(messages.FetchMpackRequest)),
        (f"POST {REPO}/fetch/mpack", FETCH_ANSWER),
        (f"POST {REPO}/fetch", names(messages.FetchRequest)),
        ("GET /v1/leases", lease_routes._LEASE_PARAMETERS),
        ("GET /v1/events", lease_routes._EVENT_PARAMETERS),
    ],
)
def test_every_key_of_a_call_stands_there(route: str, keys: set[str]) -> None:
    assert keys <= codes(part(f"### `{route}`"))


# Errors. -----------------------------------------------------------------------------------------


def failures() -> list[type[Failure]]:
    """Every failure class there is; each module is imported, so that none hides."""
    for package in (leases, gateway):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    found: list[type[Failure]] = []
    waiting = list(Failure.__subclasses__())
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return [kind for kind in found if kind.__module__.partition(".")[0] in ("gateway", "leases")]


def told_in(heading: str) -> Mapping[str, list[str]]:
    return {row[0]: row[1:] for row in rows(part(heading))}


def test_every_error_code_stands_there_with_its_status() -> None:
    answered, commanded = told_in("### Answered by HTTP"), told_in("### Told by commands")
    inside, raised = told_in("### Inside the process"), told_in("### Raised by the Python client")
    expected_of_client = {}
    for kind in failures():
        if issubclass(kind, ClientError):
            expected_of_client[kind.code] = f"`{kind.__name__}`"
        elif kind.code in commanded:
            assert commanded[kind.code][0] == str(exit_code_of(kind()).value), kind
        elif kind.code not in inside:
            answer = answer_for(kind(), request_id="")
            assert answered[answer.body["code"]][0] == str(answer.status), kind
    assert {code: cells[0] for code, cells in raised.items()} == expected_of_client
    assert answered["internal"][0] == str(answer_for(KeyError(), request_id="").status)


def test_no_unknown_error_code_stands_there() -> None:
    known = {kind.code for kind in failures()} | {"internal"}
    told = [row[0] for row in rows(part("## Errors"))]
    assert set(told) == known
    named = re.findall(r"Errors: (.*?)(?=\n\n|\n#|\Z)", part("## HTTP"), re.DOTALL)
    answered = told_in("### Answered by HTTP")
    for code in (code for text in named for code in codes(text) if re.fullmatch("[a-z_]+", code)):
        assert code in {*answered, "missing", "ttl_seconds"}, code


def test_conflicts_are_told_as_what_they_become() -> None:
    kinds = [
        kind.code for kind in failures() if issubclass(kind, Conflict) and kind is not Conflict
    ]
    assert sorted(list(told_in("### Inside the process"))[:3]) == sorted(kinds)


# Metrics. ----------------------------------------------------------------------------------------


def test_every_metric_stands_there_with_its_kind_and_labels() -> None:
    counted = {}
    for family in Metrics(SystemClock()).registry.collect():
        if family.name.startswith("mpack_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            counted[name] = (family.type, labels)
    told = {
        row[0]: (row[1], codes(row[2])) for row in rows(part("## Metrics")) if row[0] != "metric"
    }
    for name, (kind, labels) in counted.items():
        assert told[name][0] == kind, name
        assert not labels or told[name][1] == labels, name
    state = (TOP / "gateway/metrics_state.py").read_text()
    read = {
        text
        for node in ast.walk(ast.parse(state))
        if (text := text_of(node)) and re.fullmatch("mpack_[a-z_]+", text)
    }
    assert set(told) == set(counted) | read
    assert all(told[name][0] == "gauge" for name in read)


# Events, steps, log lines. -----------------------------------------------------------------------


def calls() -> Iterator[ast.Call]:
    """Every call in the product's code."""
    for package in ("gateway", "leases"):
        for path in (TOP / package).rglob("*.py"):
            yield from (
                node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
            )


def text_of(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_every_event_type_stands_there_with_its_fields() -> None:
    told = {row[0]: codes(row[2]) for row in rows(part("## Events")) if "." in row[0]}
    for kind in get_args(Event):
        assert told.pop(kind.type) == {field.name for field in fields(kind)}, kind
    made = {
        text_of(word.value): call
        for call in calls()
        if getattr(call.func, "id", "") == "NewEvent"
        for word in call.keywords
        if word.arg == "type" and text_of(word.value)
    }
    assert set(told) == set(made)


def log_levels() -> dict[str, set[str]]:
    """Every event of a log line with its levels; leases' own failures are logged by their type."""
    found: dict[str, set[str]] = {"lease_cleanup_failed": {"warning"}, "lease_stuck": {"error"}}
    for call in calls():
        event = text_of(call.args[0]) if call.args else None
        if event is None:
            continue
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in (
            "_log",
            "log",
        ):
            level = {"exception": "error"}.get(call.func.attr, call.func.attr)
            found.setdefault(event, set()).add(level)
        elif getattr(call.func, "id", "") == "say":
            found.setdefault(event, set()).add("info")
    return found


def test_every_log_event_that_matters_stands_there() -> None:
    told = {row[0]: set(row[1].split(", ")) for row in rows(part("## Log lines"))}
    assert told == {event: at for event, at in log_levels().items() if at != {"debug"}}
    assert {finding.value for finding in Finding} <= codes(part("## Log lines"))


def test_every_step_is_explained() -> None:
    told = [row[0] for row in rows(ARCHITECTURE)]
    steps = [step.value for step in Step]
    assert sorted(name for name in told if "." in name and "/" not in name) == sorted(steps)


@pytest.mark.parametrize("page", PAGES)
def test_every_place_that_is_named_is_there(page: str) -> None:
    text = PAGES[page]
    folder = TOP if page == "README.md" else TOP / "docs"
    links: list[Any] = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text)
    paths = re.findall(r"`((?:gateway|leases|schema|tests|docs)/[\w./-]*)`", text)
    missing = [link for link in links if not (folder / link).exists()]
    assert missing + [path for path in paths if not (TOP / path).exists()] == []

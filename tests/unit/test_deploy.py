"""deploy/: what cannot be run on a developer's machine is at least read, and held to the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from starlette.datastructures import Secret

from gateway.app import create_app
from gateway.cli import main
from gateway.environment import named_fields
from gateway.settings import Settings
from tests.installed import installed
from tests.unit.test_tidy import TOP

DEPLOY = TOP / "deploy"
# An imported script leaves its compiled form beside it.
FILES = [p for p in sorted(DEPLOY.rglob("*")) if p.is_file() and p.suffix != ".pyc"]
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
REPLICAS = [name for name in SERVICES if re.fullmatch(r"gateway-\d", name)]
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
SERVICE_UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PINNED = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}\Z")
SETTINGS = {setting.variable for setting in named_fields(Settings)}


def is_command(words: list[str]) -> bool:
    """Whether these words begin a call of the command line, with options it has."""
    command: click.Command = main
    with click.Context(main) as context:
        while isinstance(command, click.Group) and words:
            found = command.get_command(context, words[0])
            if found is None:
                return False
            command, words = found, words[1:]
    options = {name for one in command.params for name in one.opts}
    return {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_only_settings_that_exist_are_named(path: Path) -> None:
    named = set(re.findall(r"\bMPACK_[A-Z0-9_]*[A-Z0-9]", path.read_text()))
    assert {name.removesuffix("_FILE") for name in named} <= SETTINGS


# The image. --------------------------------------------------------------------------------------


def instructions(kind: str) -> list[str]:
    joined = CONTAINERFILE.replace("\\\n", " ")
    return re.findall(rf"^{kind} +(.*)$", joined, re.MULTILINE)


def test_the_image_is_built_in_stages_from_pinned_bases() -> None:
    stages = instructions("FROM")
    assert len(stages) == 2
    for stage in stages:
        assert PINNED.match(stage.split(" ")[0]), stage


def test_the_image_runs_without_rights_under_an_init_process() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert instructions("ENTRYPOINT") == ['["tini", "--", "mpack-gateway"]']
    assert CONTAINERFILE.index("USER ") < CONTAINERFILE.index("ENTRYPOINT ")
    check = yaml.safe_load(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
    assert check[:2] == ["mpack-gateway", "healthcheck"]
    assert is_command(check[1:])
    assert is_command(yaml.safe_load(instructions("CMD")[-1]))


def test_the_build_sees_everything_it_copies_and_no_secrets() -> None:
    ignored = (TOP / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for line in instructions("COPY"):
        source = line.split(" ")[0]
        if not source.startswith("--from"):
            assert (TOP / source).exists()
            assert f"!{source}" in ignored
    assert not [line for line in ignored if line in ("!deploy", "!.", "!.git", "!.env")]


# Compose. ----------------------------------------------------------------------------------------


def test_three_replicas_stand_behind_the_proxy_and_are_scraped() -> None:
    assert REPLICAS == ["gateway-1", "gateway-2", "gateway-3"]
    proxy = (DEPLOY / "compose/haproxy.cfg").read_text()
    assert re.findall(r"^ +server (\S+) (\S+)$", proxy, re.MULTILINE) == [
        (name, f"{name}:8080") for name in REPLICAS
    ]
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{name}:8080" for name in REPLICAS]}]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_names_only_what_is_there(name: str) -> None:
    service = SERVICES[name]
    if not service["image"].startswith("mpack-gateway:"):
        assert PINNED.match(service["image"])
    for other in service.get("depends_on", ()):
        assert other in SERVICES
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert (DEPLOY / source).is_file() if "/" in source else source in COMPOSE["volumes"]
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "the world comes through something with TLS"
    assert service["restart"] in ("unless-stopped", "no")


@pytest.mark.parametrize("name", [*REPLICAS, "migrate"])
def test_the_gateways_run_without_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # The image's own, which is not root.
    assert is_command(service.get("command", ["serve"]))


def test_the_gateways_are_asked_how_they_are_and_get_time_to_stop() -> None:
    settings = Settings(database_url=Secret("postgresql://x@y/z"))
    for name in REPLICAS:
        service = SERVICES[name]
        command, *words = service["healthcheck"]["test"][1:]
        assert command == "mpack-gateway"
        assert is_command(words)
        drain = float(service["environment"]["MPACK_DRAIN_SECONDS"])
        deleting = settings.lease.delete_timeout_seconds + 5
        needed = drain + settings.shutdown_timeout_seconds + deleting
        assert int(service["stop_grace_period"].removesuffix("s")) > needed


def filled_in(text: str, values: dict[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?message}` as compose reads them."""
    return re.sub(
        r"\$\{(\w+)(?::([-?])([^}]*))?\}",
        lambda found: (
            values.get(found[1]) or (found[3] if found[2] == "-" else f"missing-{found[1]}")
        ),
        text,
    )


def example() -> Iterator[tuple[str, str]]:
    for line in (DEPLOY / ".env.example").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name, value


def test_the_example_holds_every_variable_that_compose_asks_for() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert asked == set(dict(example())) - {"COMPOSE_PROFILES"}


@pytest.mark.parametrize("name", [*REPLICAS, "migrate"])
def test_the_settings_in_compose_are_accepted(name: str) -> None:
    values = {key: value or "deadbeef" * 4 for key, value in example()}
    told = {
        key: filled_in(value, values)
        for key, value in SERVICES[name]["environment"].items()
        if key.startswith("MPACK_")
    }
    settings = Settings.from_environment(told)
    assert settings.s3.s3_bucket == "mpacks"
    assert "missing-" not in str(told)


# systemd, the proxy, Kubernetes. -----------------------------------------------------------------


def test_the_units_verify(tmp_path: Path) -> None:
    analyze = installed("systemd-analyze", package="systemd")
    for unit in (DEPLOY / "systemd").iterdir():
        # The command has to be one that is there.
        text = unit.read_text().replace(
            "/opt/mpack-gateway/bin/mpack-gateway", f"{sys.executable} -m gateway"
        )
        (tmp_path / unit.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert len(units) == 5
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda u: u.name
)
def test_the_units_call_commands_that_exist(unit: Path) -> None:
    called = re.findall(r"^Exec\w+=(.*)$", unit.read_text(), re.MULTILINE)
    assert called
    for line in called:
        assert is_command(shlex.split(line)[1:]), line


def test_the_proxy_reads_its_configuration() -> None:
    program = installed("haproxy", package="haproxy")
    done = subprocess.run(
        [program, "-c", "-f", DEPLOY / "compose/haproxy.cfg"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for document in KUBERNETES:
        if document["kind"] in ("Deployment", "Job"):
            pod = document["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield pod, container


def test_the_pods_run_without_rights_and_call_what_is_there() -> None:
    addresses = {
        route.path  # type: ignore[attr-defined]  # all are Route
        for route in create_app(Settings(database_url=Secret("postgresql://x@y/z"))).routes
    }
    found = list(pods())
    assert len(found) == 2
    for pod, container in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["image"].endswith(":latest")
        assert is_command(container.get("args", ["serve"]))
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        probes = [value for key, value in container.items() if key.endswith("Probe")]
        assert {probe["httpGet"]["path"] for probe in probes} <= addresses
    deployment = next(one for one in KUBERNETES if one["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] >= 3


# The runbook. ------------------------------------------------------------------------------------


def test_the_runbook_names_only_what_is_there() -> None:
    text = (DEPLOY / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (DEPLOY / link).exists(), link
    called = re.findall(r"mpack-gateway ((?:[a-z]+ )*[a-z]+)(?: (--[a-z-]+))?", text)
    assert len(called) > 10
    known = set(main.list_commands(click.Context(main)))
    for words, option in called:
        parts = words.split(" ")
        if parts[0] in known:
            assert is_command([*parts, *([option] if option else [])]), words

"""The doctor sees what is wrong, says what mends it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.storage.s3_settings import S3Settings
from leases.owner import Mark
from tests.integration.commands import Commands
from tests.integration.gateways import serving, settings_for
from tests.rgw import new_bucket, owner, s3_settings

LOCAL = {"versioning", "lifecycle rule", "store's clock"}


def examined(commands: Commands, *, exits: int = 0) -> dict[str, dict[str, Any]]:
    """Each check by its name."""
    told = commands.json("doctor", exits=exits)
    checks: Any = told["checks"]
    assert told["ok"] is (exits == 0), checks
    assert all(one["mend"] for one in checks if one["health"] in ("warning", "problem"))
    return {one["check"]: one for one in checks}


def sick(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, one in checks.items() if one["health"] == "problem"}


@pytest.fixture
def commands(commands: Commands) -> Commands:
    """On a folder, whatever the rest of the tests run on; buckets have tests of their own."""
    commands.environ = {
        name: value for name, value in commands.environ.items() if "_S3_" not in name
    }
    return commands


@pytest.fixture
async def served(database_url: str, tmp_path: Path) -> Any:
    """Commands beside a gateway that serves: its signed URLs can be read."""
    settings = replace(settings_for(database_url, tmp_path / "data"), s3=S3Settings())
    async with serving(settings) as gateway:
        # What it logs at its start would otherwise end among a command's captured answer.
        await gateway.service.engine.owner.check()
        commands = Commands(database_url, tmp_path / "data")
        commands.environ = {
            "MPACK_DATABASE_URL": database_url,
            "MPACK_DATA_DIR": str(tmp_path / "data"),
            "MPACK_PUBLIC_URL": gateway.url,
        }
        yield commands


async def test_a_gateway_that_is_well(served: Commands) -> None:
    checks = await asyncio.to_thread(examined, served)
    assert {name for name, one in checks.items() if one["health"] == "skipped"} == LOCAL
    # In tests the tables' owner serves.
    assert {name for name, one in checks.items() if one["health"] == "warning"} <= {
        "append-only",
        "database",
    }
    for check in ("signed URL", "tampered URL", "expired URL", "delete twice", "mark", "log"):
        assert checks[check]["health"] == "ok", check
    assert "1 replica is running" in checks["leases"]["detail"]


def test_it_leaves_a_lease_that_has_ended_and_no_blob(commands: Commands) -> None:
    checks = examined(commands)
    assert checks["signed URL"]["health"] == "skipped"
    assert "no replica" in checks["leases"]["detail"]
    assert commands.blobs() == 0
    commands.run("sweep")
    assert commands.json("lease", "list", "--state", "reclaimed")["leases"]
    commands.run("audit", "verify")


def test_what_nobody_does_is_told_with_its_reason(commands: Commands) -> None:
    """The doctor holds a session lock as replicas do, and is none."""
    commands.grant()
    commands.sql("UPDATE mpack_leases SET delete_at = delete_at - interval '1 hour'")
    assert "no replica is running" in examined(commands, exits=1)["leases"]["detail"]


def test_for_people_each_line_is_a_check(commands: Commands) -> None:
    lines = commands.run("doctor").stdout.splitlines()
    assert any(line.startswith("ok       schema") for line in lines)
    assert any("->" in line for line in lines)


def test_an_unreachable_database_ends_it(commands: Commands, tmp_path: Path) -> None:
    commands.environ["MPACK_DATABASE_URL"] = f"postgresql://u@/d?host={tmp_path}"
    checks = examined(commands, exits=1)
    assert list(checks) == ["settings", "database"]


def test_another_schema_ends_it(commands: Commands) -> None:
    commands.sql("DELETE FROM alembic_version")
    checks = examined(commands, exits=1)
    assert sick(checks) == {"schema"}
    assert "db upgrade" in checks["schema"]["mend"]


def test_a_foreign_mark_and_a_pause_are_told(commands: Commands) -> None:
    commands.run("reap", "pause", "--reason", "moving house")
    assert "moving house" in examined(commands, exits=1)["mark"]["detail"]
    commands.run("reap", "resume")
    mark = commands.data_dir / "transient" / ".owner"
    mark.write_bytes(Mark(log_id="another", position=0, hash="").dump())
    assert "--adopt" in examined(commands, exits=1)["mark"]["mend"]


def test_a_changed_table_and_switched_off_guards_are_told(commands: Commands) -> None:
    commands.grant()
    commands.sql("UPDATE mpack_leases SET size_bytes = 7")
    commands.sql("ALTER TABLE events DISABLE TRIGGER events_append_only")
    assert sick(examined(commands, exits=1)) == {"log", "append-only"}


def test_missing_grants_are_listed(commands: Commands) -> None:
    """As a role that may only read, which every session of this database takes on."""
    commands.sql("CREATE ROLE only_reads")
    commands.sql("REVOKE ALL ON FUNCTION append_events FROM PUBLIC")
    commands.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO only_reads")
    database = commands.sql("SELECT quote_ident(current_database())")
    commands.sql(f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET role = 'only_reads'")
    try:
        checks = examined(commands, exits=1)
    finally:
        commands.sql_script("SET ROLE NONE; DROP OWNED BY only_reads; DROP ROLE only_reads")
    missing = checks["grants"]["detail"]
    assert "append_events(): EXECUTE" in missing
    assert "repos: DELETE, INSERT, UPDATE" in missing
    assert "mpack_leases.claim_token: UPDATE" in missing
    assert checks["append-only"]["health"] == "ok"


def test_a_crash_setting_is_told(commands: Commands) -> None:
    commands.environ["MPACK_CRASH_AT"] = "reap.claimed"
    assert sick(examined(commands, exits=1)) == {"settings"}


def on_s3(commands: Commands) -> str:
    """Let the commands work on a bucket of a real server; its name."""
    bucket = new_bucket()
    settings = s3_settings(bucket)
    for item in fields(settings):
        if (value := getattr(settings, item.name)) != item.default:
            commands.environ[f"MPACK_{item.name.upper()}"] = str(value)
    return bucket


def test_a_bucket_that_is_well(commands: Commands) -> None:
    bucket = on_s3(commands)
    checks = examined(commands)
    assert checks["lifecycle rule"]["health"] == "warning"
    for check in ("signed URL", "tampered URL", "expired URL", "versioning", "store's clock"):
        assert checks[check]["health"] == "ok", checks[check]
    rule = {
        "ID": "x",
        "Status": "Enabled",
        "Filter": {"Prefix": "transient/"},
        "Expiration": {"Days": 2},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
    }
    owner().put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}
    )
    assert examined(commands)["lifecycle rule"]["health"] == "ok"


def test_a_versioned_bucket_is_refused(commands: Commands) -> None:
    bucket = on_s3(commands)
    owner().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "versions" in str(examined(commands, exits=1)["store"]["detail"]).lower()


def test_an_absent_bucket_is_told(commands: Commands) -> None:
    on_s3(commands)
    commands.environ["MPACK_S3_BUCKET"] = "nobody-has-this-bucket"
    checks = examined(commands, exits=1)
    assert sick(checks) == {"store"}, checks

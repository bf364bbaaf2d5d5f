"""Settings: read from one place, refused all at once, shown without secrets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from starlette.datastructures import Secret

from gateway.environment import named_fields
from gateway.settings import Settings, SettingsInvalid, database_dsn, hide_password
from leases.steps import Step

URL = "postgresql://user:hunter2@db.example/mpack"
NEEDED = {"MPACK_DATABASE_URL": URL}


def problems_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsInvalid) as refused:
        Settings.from_environment(environ)
    return refused.value.problems


def test_every_name_is_unique_across_the_groups() -> None:
    """One flat namespace of variables: a second field of a name would shadow the first."""
    doubled = [n for n, c in Counter(f.name for f in named_fields(Settings)).items() if c > 1]
    assert doubled == []


def test_no_name_ends_like_a_file_variable() -> None:
    assert [f.name for f in named_fields(Settings) if f.name.endswith("_file")] == []


def test_the_defaults_pass() -> None:
    settings = Settings.from_environment(NEEDED)
    assert settings.lease.ttl_default_seconds == 300
    assert settings.base_url == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    "host, url",
    [
        ("10.1.2.3", "http://10.1.2.3:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("fd00::7", "http://[fd00::7]:8080"),
    ],
)
def test_signed_urls_begin_as_this_machine_reaches_the_host(host: str, url: str) -> None:
    """Without a public URL; "http://:::8080" is none at all."""
    assert Settings.from_environment(NEEDED | {"MPACK_HOST": host}).base_url == url


def test_each_type_is_read() -> None:
    settings = Settings.from_environment(
        NEEDED
        | {
            "MPACK_PORT": "9000",
            "MPACK_TTL_DEFAULT_SECONDS": "1.5",
            "MPACK_ALARM_ENABLED": "off",
            "MPACK_DATA_DIR": "/srv/blobs",
            "MPACK_LOG_FORMAT": "console",
            "MPACK_CRASH_AT": "fetch.pack_put",
            "MPACK_PUBLIC_URL": "https://packs.example/",
            "MPACK_BODY_BYTES_MAX": "5000000",
            "PATH": "/bin",
        }
    )
    assert (settings.port, settings.lease.ttl_default_seconds) == (9000, 1.5)
    assert settings.lease.alarm_enabled is False
    assert settings.data_dir == Path("/srv/blobs")
    assert settings.crash_at is Step.PACK_PUT
    assert settings.base_url == "https://packs.example"
    assert settings.wire.body_bytes_max == 5_000_000


def test_all_problems_are_told_at_once() -> None:
    found = problems_of(
        {
            "MPACK_PORT": "80a",
            "MPACK_TTL_DEFAULT_SECONDS": "nan",
            "MPACK_REAP_WORKERS": "1_0",
            "MPACK_ALARM_ENABLED": "maybe",
            "MPACK_LOG_FORMAT": "xml",
            "MPACK_DATABSE_URL": "x",
            "MPACK_NOTHING_LIKE_IT_AT_ALL": "x",
        }
    )
    assert len(found) == 8, found
    told = "\n".join(found)
    assert "MPACK_DATABASE_URL is needed." in told
    assert "is MPACK_DATABASE_URL meant?" in told
    assert "MPACK_LOG_FORMAT must be one of console, json" in told


@pytest.mark.parametrize("text", ["", " 1", "1 ", "0x10", "1e3", "inf", "-inf", "NaN", "१", "1__0"])
def test_numbers_are_read_strictly(text: str) -> None:
    if not text:
        assert Settings.from_environment(NEEDED | {"MPACK_PORT": text}).port == 8080
        return
    assert problems_of(NEEDED | {"MPACK_PORT": text, "MPACK_GRACE_SECONDS": text})


def test_what_does_not_fit_together_is_told() -> None:
    found = problems_of(
        NEEDED
        | {
            "MPACK_DELETE_TIMEOUT_SECONDS": "30",
            "MPACK_PORT": "70000",
            "MPACK_DATABASE_POOL_SIZE": "0",
            "MPACK_PUBLIC_URL": "packs.example",
            "MPACK_DATABASE_DIRECT_URL": "mysql://db",
        }
    )
    assert len(found) == 5, found


@pytest.mark.parametrize("address", ["host:port", "host:70000", "[::1"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    """A slip in a URL is the settings' fault, and no bug of a driver's."""
    found = problems_of(
        {
            "MPACK_DATABASE_URL": f"postgresql://user@{address}/name",
            "MPACK_PUBLIC_URL": f"https://{address}",
            "MPACK_S3_BUCKET": "packs",
            "MPACK_S3_ENDPOINT": f"https://{address}",
        }
    )
    assert len(found) == 3, found


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(URL + "\n")
    settings = Settings.from_environment({"MPACK_DATABASE_URL_FILE": str(file)})
    assert str(settings.database_url) == URL


@pytest.mark.parametrize(
    "more, told",
    [
        ({"MPACK_DATABASE_URL": URL, "MPACK_DATABASE_URL_FILE": "/x"}, "both set"),
        ({"MPACK_DATABASE_URL_FILE": "/does/not/exist"}, "cannot be read"),
    ],
    ids=["both", "absent"],
)
def test_a_file_that_cannot_be_used_is_told(more: dict[str, str], told: str) -> None:
    (problem,) = problems_of(more)
    assert told in problem
    assert "hunter2" not in problem


def test_an_override_wins() -> None:
    settings = Settings.from_environment(NEEDED, database_url="postgresql://other/db", port=None)
    assert str(settings.database_url) == "postgresql://other/db"


def test_no_secret_is_shown() -> None:
    settings = Settings.from_environment(NEEDED)
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.redacted())
    assert settings.redacted()["database_url"] == "postgresql://user:**********@db.example/mpack"
    assert set(settings.redacted()) == {item.name for item in named_fields(Settings)}


@pytest.mark.parametrize(
    "url, shown",
    [
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql:///d?host=/run&password=p", "postgresql:///d?host=/run&password=**********"),
        ("postgresql://u:a@b@h/d", "postgresql://u:**********@h/d"),
    ],
)
def test_a_password_is_hidden_wherever_it_stands(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_the_driver_is_chosen_here(scheme: str) -> None:
    assert database_dsn(Secret(f"{scheme}://u@h/d")) == "postgresql+asyncpg://u@h/d"


BUCKET = {"MPACK_S3_BUCKET": "packs"}


def test_a_bucket_makes_s3_the_store() -> None:
    keys = {"MPACK_S3_ACCESS_KEY": "AK", "MPACK_S3_SECRET_KEY": "hunter2"}
    settings = Settings.from_environment(NEEDED | BUCKET | keys)
    assert settings.s3.base_url == settings.s3.public_url == "https://s3.us-east-1.amazonaws.com"
    assert "hunter2" not in f"{settings} {settings.redacted()}"


@pytest.mark.parametrize(
    "more, told",
    [
        ({"MPACK_S3_ENDPOINT": "https://s3"}, "s3_endpoint is set, but s3_bucket is not."),
        ({"MPACK_S3_BUCKET": "No_Bucket"}, "s3_bucket must be a bucket's name"),
        (BUCKET | {"MPACK_S3_ENDPOINT": "s3.example"}, "s3_endpoint must be http"),
        (BUCKET | {"MPACK_S3_ENDPOINT": "https://u:p@s3"}, "s3_endpoint must be http"),
        (BUCKET | {"MPACK_S3_PUBLIC_ENDPOINT": "https://s3/x"}, "s3_public_endpoint must be"),
        (BUCKET | {"MPACK_S3_ACCESS_KEY": "AK"}, "s3_access_key and s3_secret_key go together"),
        (BUCKET | {"MPACK_S3_REAPER_SECRET_KEY": "SK"}, "s3_reaper_access_key and"),
        (BUCKET | {"MPACK_S3_SESSION_TOKEN": "T"}, "s3_session_token needs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bucket_that_cannot_work_is_told(more: dict[str, str], told: str) -> None:
    (problem,) = problems_of(NEEDED | more)
    assert problem.startswith(told)

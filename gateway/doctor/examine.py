"""All checks, one after the other; what cannot be looked at any more is left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from gateway.doctor.database import (
    look_at_grants,
    look_at_schema,
    look_at_server,
    look_at_sessions,
    look_at_settings,
)
from gateway.doctor.finding import Finding, Health, ok, problem, skipped, warning
from gateway.doctor.store import look_at_bucket, look_at_store
from gateway.service import Service, make_engine
from gateway.settings import Settings
from leases.audit import REMEDY
from leases.database import Database
from leases.errors import DatabaseUnavailable, Failure
from leases.lessor import Caller
from leases.owner import Ownership
from leases.stats import read_stats
from leases.usage import read_usage

_QUOTA_USED_RATIO = 0.9  # Somebody should look before callers are refused.
# Above this, the whole log takes longer than somebody with a problem wants to wait.
_VERIFIED_WHOLE_MAX = 200_000


async def examine(settings: Settings, *, caller: Caller) -> AsyncIterator[Finding]:
    """Look at everything.

    Effects: one lease, its blob, and their end.
    """
    yield look_at_settings(settings)
    database = Database(make_engine(settings.database_url, settings))
    try:
        try:
            yield await look_at_server(database)
            schema = await look_at_schema(database)
            yield schema
            if schema.health is not Health.OK:
                return
            async for finding in look_at_grants(database):
                yield finding
        except DatabaseUnavailable as failure:
            yield problem(
                "database", str(failure), mend="Bring it back, or mend MPACK_DATABASE_URL."
            )
            return
    finally:
        await database.close()
    async for finding in _inside(settings, caller):
        yield finding


async def _inside(settings: Settings, caller: Caller) -> AsyncIterator[Finding]:
    """What needs the whole machinery, and a store that lets itself be opened."""
    service = Service(settings, watch=False)
    try:
        await service.__aenter__()
    except Exception as error:  # noqa: BLE001  whatever keeps it from being opened
        yield problem("store", _words(error), mend="Mend the settings of the store.")
        return
    try:
        for findings in (
            look_at_sessions(service),
            # Before the doctor's own lease is among them.
            _guarded("leases", _look_at_leases(service)),
            _guarded("quotas", _look_at_quotas(service)),
            _guarded("store", look_at_store(service, caller)),
            look_at_bucket(service),
            _guarded("mark", _look_at_mark(service)),
            _guarded("log", _look_at_log(service)),
        ):
            async for finding in findings:
                yield finding
    finally:
        await service.__aexit__(None, None, None)


async def _look_at_quotas(service: Service) -> AsyncIterator[Finding]:
    settings = service.settings
    used = await read_usage(
        service.database, settings.lease, upload_bytes_max=settings.wire.upload_bytes_max
    )
    for usage in used:
        name = f"{usage.quota}_max"
        if usage.used < usage.at_most * _QUOTA_USED_RATIO:
            yield ok(name, usage.in_words())
        else:
            yield warning(
                name,
                f"{usage.in_words()}; new packs are refused when it is reached",
                mend=f"`lease revoke --repo REPO` frees what nobody needs; MPACK_{name.upper()}"
                " may be larger where store and database have room.",
            )


async def _guarded(check: str, findings: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    """A check that breaks off is a finding, and the next one is made."""
    try:
        async for finding in findings:
            yield finding
    except Exception as error:  # noqa: BLE001  whatever is wrong here, the rest is looked at
        yield problem(check, _words(error), mend="See the findings above, and try again.")


def _words(error: Exception) -> str:
    """Our own failures' words; of others the kind alone: a store's may repeat a signed URL."""
    return str(error) if isinstance(error, Failure) else f"it failed ({type(error).__name__})"


async def _look_at_mark(service: Service) -> AsyncIterator[Finding]:
    owner = service.engine.owner
    if await owner.check() is Ownership.PAUSED:
        yield problem(
            "mark",
            f"reaping is paused: {owner.reason}",
            mend="`mpack-gateway reap resume`; against the store's mark, and only if this"
            " database is the right one, with --adopt.",
        )
    else:
        yield ok("mark", "the store is this log's, and reaping is allowed")


async def _look_at_log(service: Service) -> AsyncIterator[Finding]:
    auditor = service.engine.auditor
    head = await service.engine.log.head()
    whole = head["position"] <= _VERIFIED_WHOLE_MAX
    verdict = await (auditor.verify() if whole else auditor.verify_tail())
    if not verdict.ok:
        more = "" if len(verdict.problems) == 1 else f" (and {len(verdict.problems) - 1} more)"
        yield problem(
            "log",
            verdict.problems[0] + more,
            mend=f"`mpack-gateway audit verify` lists them. {REMEDY}",
        )
    elif whole:
        yield ok("log", f"all {verdict.events:,} events follow, and the lease table from them")
    else:
        yield ok(
            "log",
            f"the newest {verdict.events:,} of {head['position']:,} events follow;"
            " `audit verify` checks the rest and the lease table",
        )


async def _look_at_leases(service: Service) -> AsyncIterator[Finding]:
    stats = await read_stats(service.database)
    others = max(0, stats.replicas - 1)  # This command holds a session lock, too.
    stats = replace(stats, replicas=others)
    if stats.is_not_done:
        yield problem(
            "leases", stats.in_words(), mend="Start a replica, or see the other findings."
        )
    elif others < 1:
        yield skipped("leases", "no replica is running", "mpack-gateway serve")
    else:
        running = "1 replica is" if others == 1 else f"{others} replicas are"
        yield ok("leases", f"{stats.in_words()} {running} running.")
    if stats.stuck:
        yield warning(
            "stuck leases",
            f"{stats.stuck} cannot be deleted",
            mend="`lease list --state stuck`; mend the cause, then `lease retry --stuck`.",
        )

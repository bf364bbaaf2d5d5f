"""The planted bugs: each a mistake that somebody could make in an afternoon."""

from __future__ import annotations

from dataclasses import dataclass

APPEND = "schema/migrations/sql/0001_log.sql"
DECIDE = "leases/decide.py"
CLAIMS = "leases/claims.py"
REAPER = "leases/reaper.py"
SETTLEMENT = "leases/settlement.py"
DELETIONS = "leases/deletions.py"
RECONCILE = "leases/reconcile.py"
OWNER = "leases/owner.py"
ALARM = "leases/alarm.py"
TIMER = "leases/timer.py"
DEPOSIT = "gateway/packs/deposit.py"
STREAM = "gateway/packs/stream.py"
QUOTAS = "leases/quotas.py"
ROOM = "leases/room.py"
SHARING = "gateway/packs/sharing.py"
BULK = "gateway/storage/s3_deletions.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """An edit: `old` stands in the file exactly once, and becomes `new`."""

    name: str
    says: str
    path: str
    old: str
    new: str

    def planted_in(self, text: str) -> str:
        """The file's text with the bug in it."""
        assert text.count(self.old) == 1, f"{self.name}: {self.path} has changed; renew the edit"
        return text.replace(self.old, self.new)


def _bug(name: str, path: str, old: str, new: str, *, says: str) -> Bug:
    return Bug(name=name, says=says, path=path, old=old, new=new)


# The append function in the database. ------------------------------------------------------------
_LOG = (
    _bug(
        "append-ignores-deadline",
        APPEND,
        "ELSIF not_afters[found.i] < appended_at THEN",
        "ELSIF false THEN",
        says="a move that was decided in time is recorded after the deadline",
    ),
    _bug(
        "append-by-frozen-clock",
        APPEND,
        "appended_at := greatest(clock_timestamp(), head.recorded_at);",
        "appended_at := greatest(now(), head.recorded_at);",
        says="the guards look at the time before the wait for the head",
    ),
    _bug(
        "append-ignores-version",
        APPEND,
        "ELSIF expected[found.i] + 1 <> versions[found.i] THEN",
        "ELSIF false THEN",
        says="of two commands decided on one state both are recorded",
    ),
    _bug(
        "append-ignores-live-claim",
        APPEND,
        "IF found.claimed_until > appended_at THEN",
        "IF false THEN",
        says="a lease is moved while a worker deletes its blob",
    ),
    _bug(
        "append-ignores-claim-token",
        APPEND,
        "ELSIF found.claim_token IS DISTINCT FROM claims[found.i]::uuid THEN",
        "ELSIF false THEN",
        says="a worker whose claim was taken over records all the same",
    ),
    _bug(
        "append-without-row-lock",
        APPEND,
        "IF 'none' = ANY (claims) THEN",
        "IF false THEN",
        says="a claim commits between the guard's look and the append",
    ),
    _bug(
        "append-half-a-group",
        APPEND,
        "ELSIF groups[i] = ANY (refused) THEN",
        "ELSIF false THEN",
        says="a group of events is recorded in part",
    ),
    _bug(
        "lost-commit-is-conflict",
        APPEND,
        "                             AND e.event_id = event_ids[found.i]) THEN",
        "                             AND false) THEN",
        says="an append whose answer was lost looks like somebody else's",
    ),
    _bug(
        "append-keeps-claim",
        APPEND,
        "claim_token = CASE WHEN a.type <> 'lease.reclaimed' THEN l.claim_token END",
        "claim_token = l.claim_token",
        says="a reclaimed lease stays claimed",
    ),
    _bug(
        "chain-not-checked",
        "leases/audit.py",
        "if link_hash(self.hash, (*fields, request_id, moment)) != stated:",
        "if link_hash(self.hash, (*fields, request_id, moment)) == b'':",
        says="the audit takes a rewritten event",
    ),
    _bug(
        "batch-doubles-stream",
        "leases/log.py",
        "fits = count + len(group.events) <= EVENTS_PER_CALL_MAX\n"
        "            if fits and streams.isdisjoint(mine):",
        "fits = count + len(group.events) <= EVENTS_PER_CALL_MAX\n            if fits:",
        says="two events of one stream go into one call",
    ),
)

# What may become of a lease. ---------------------------------------------------------------------
_LIFE = (
    _bug(
        "activate-at-the-deadline",
        DECIDE,
        "now >= lease.delete_at:\n        raise LeaseEnded(mpack_id=lease.mpack_id)\n    if not",
        "now > lease.delete_at:\n        raise LeaseEnded(mpack_id=lease.mpack_id)\n    if not",
        says="> for >=: a reservation is activated at the moment at which it is due",
    ),
    _bug(
        "renew-after-expiry",
        DECIDE,
        "if now >= renewable_until(lease, command.guard_seconds):",
        "if now >= _life_end(lease, command.lease_life_max_seconds):",
        says="a lease is renewed after its end",
    ),
    _bug(
        "renew-shortens",
        DECIDE,
        "if expires_at <= lease.expires_at:",
        "if expires_at == lease.expires_at:",
        says="a renewal takes back what was promised",
    ),
    _bug(
        "life-without-end",
        DECIDE,
        "longest = min(wished, _life_end(lease, command.lease_life_max_seconds))",
        "longest = wished",
        says="renewals carry a lease past lease_life_max",
    ),
    _bug(
        "grace-forgotten",
        DECIDE,
        "            delete_at=expires_at + timedelta(seconds=command.grace_seconds),\n"
        "            ttl_seconds=command.ttl_seconds,",
        "            delete_at=expires_at,\n            ttl_seconds=command.ttl_seconds,",
        says="the blob goes with the promise, not after the grace",
    ),
    _bug(
        "reclaim-before-due",
        DECIDE,
        '    if now < lease.delete_at:\n        raise InvalidRequest("This lease is not due yet."',
        '    if now < lease.granted_at:\n        raise InvalidRequest("This lease is not due yet."',
        says="a lease that is not due may be reclaimed or forgotten",
    ),
    _bug(
        "lateness-sign",
        DECIDE,
        "lateness_ms=max(0, (now - lease.delete_at) // timedelta(milliseconds=1)),",
        "lateness_ms=max(0, (lease.delete_at - now) // timedelta(milliseconds=1)),",
        says="every cleanup looks punctual",
    ),
    _bug(
        "adopt-due-now",
        DECIDE,
        "delete_at=made_at + timedelta(seconds=command.lease_life_max_seconds),",
        "delete_at=now,",
        says="a blob whose row was lost goes while its URL may still be good",
    ),
    _bug(
        "activate-without-not-after",
        DECIDE,
        "return Guards(not_after=lease.delete_at, no_claim=True)",
        "return Guards(no_claim=True)",
        says="an activation reaches the log after the reservation's deadline",
    ),
    _bug(
        "renew-under-a-claim",
        DECIDE,
        "not_after=renewable_until(lease, command.guard_seconds), no_claim=True)",
        "not_after=renewable_until(lease, command.guard_seconds))",
        says="a renewal does not ask whether a worker is at it",
    ),
    _bug(
        "stuck-never-told",
        DECIDE,
        "if command.attempts >= command.stuck_after_attempts and not lease.stuck:",
        "if command.attempts > 1000 * command.stuck_after_attempts and not lease.stuck:",
        says="nobody hears of a blob that cannot be deleted",
    ),
)

# Claim, delete, record. --------------------------------------------------------------------------
_REAP = (
    _bug(
        "claim-early",
        CLAIMS,
        "WHERE state <> 'reclaimed' AND {DUE} <= statement_timestamp()\n"
        "      AND delete_at <= statement_timestamp() - $5::interval",
        "WHERE state <> 'reclaimed' AND {DUE} <= statement_timestamp() + interval '0.5 s'\n"
        "      AND delete_at <= statement_timestamp() + interval '0.5 s' - $5::interval",
        says="blobs go half a second before their deadline",
    ),
    _bug(
        "claim-ignores-claims",
        CLAIMS,
        'DUE = "GREATEST(delete_at, next_attempt_at, claimed_until)"',
        'DUE = "GREATEST(delete_at, next_attempt_at)"',
        says="two workers delete one blob",
    ),
    _bug(
        "claim-limit-ignored",
        CLAIMS,
        "claimed_until = statement_timestamp() + $3, claim_token = $4",
        "claimed_until = statement_timestamp() + $3 + interval '1 hour', claim_token = $4",
        says="a frozen worker keeps its claims for hours",
    ),
    _bug(
        "hand-back-forgotten",
        SETTLEMENT,
        "await self._claims.hand_back(ids, batch.token, pause_seconds=pause)",
        "_ = (ids, pause)",
        says="after an outage leases wait for the claim limit",
    ),
    _bug(
        "outage-charged",
        SETTLEMENT,
        "elif answer is None or is_outage(answer):",
        "elif answer is None:",
        says="an outage of the store costs attempts, and makes leases stuck",
    ),
    _bug(
        "record-by-process-clock",
        SETTLEMENT,
        "now = max(batch.claimed_at, self._database_clock.now())",
        "now = self._database_clock._clock.now()",
        says="lateness is counted by the process's clock",
    ),
    _bug(
        "record-dated-by-claim",
        SETTLEMENT,
        "now = max(batch.claimed_at, self._database_clock.now())",
        "now = batch.claimed_at",
        says="what a frozen process adds to a blob's life is left out of the proof",
    ),
    _bug(
        "refused-record-ends-batch",
        SETTLEMENT,
        "        return None\n    name = type(answer).__name__",
        "        return None\n    raise answer\n    name = type(answer).__name__",
        says="a lease whose end cannot be recorded holds up its whole batch",
    ),
    _bug(
        "record-before-delete",
        REAPER,
        "found = await self._deletions.delete([due.lease for due in claimed])",
        "found = dict.fromkeys((d.lease.storage_key for d in claimed), DeleteOutcome.DELETED)",
        says="a blob is recorded as gone that nobody deleted",
    ),
    _bug(
        "unsettled-claims-kept",
        REAPER,
        "            self._unsettled.append(token)\n",
        "",
        says="claims that the database cut short stand until their limit",
    ),
    _bug(
        "delete-anything",
        DELETIONS,
        "            assert lease.storage_key.startswith(PREFIX), lease.storage_key",
        "            assert lease.storage_key",
        says="the delete path takes a key outside of the transient prefix",
    ),
    _bug(
        "upload-abort-forgotten",
        DELETIONS,
        "await self._abort_uploads(leases, found)",
        "found.clear()",
        says="what a dead builder had uploaded in part stays for ever",
    ),
    _bug(
        "bulk-errors-ignored",
        BULK,
        'outcomes[failed["Key"]] = _outcome_of(failed)',
        'outcomes[failed["Key"]] = DeleteOutcome.DELETED',
        says="the `Errors` of a DeleteObjects are taken for deletions",
    ),
    _bug(
        "bulk-silence-is-success",
        BULK,
        "outcomes: dict[str, Outcome] = dict.fromkeys(keys, silent)",
        "outcomes: dict[str, Outcome] = dict.fromkeys(keys, DeleteOutcome.DELETED)",
        says="a key about which the store said nothing counts as gone",
    ),
    _bug(
        "misfire-default",
        TIMER,
        "misfire_grace_time=None,",
        "misfire_grace_time=1,",
        says="a job that a busy loop makes late is dropped",
    ),
    _bug(
        "dead-claims-kept",
        ALARM,
        "if look.dead_claims:",
        "if look.dead_claims and not look.due:",
        says="what a killed process had claimed waits for the claim limit",
    ),
    _bug(
        "start-leaves-tasks",
        "leases/engine.py",
        "            await self._end()\n            raise",
        "            await self._machinery.close()\n            raise",
        says="an engine whose start was given up goes on reaping",
    ),
    _bug(
        "no-start-up-sweep",
        "leases/engine.py",
        "result.add(await self.reaper.sweep(Trigger.START_UP))",
        "result.add(SweepResult())",
        says="what fell due while nobody was there is left to the alarm",
    ),
)

# Whose store it is, and what lies in it. ---------------------------------------------------------
_STORE = (
    _bug(
        "owner-not-checked",
        OWNER,
        "if mark.log_id != self._log_id:",
        "if not mark.log_id:",
        says="a staging clone deletes production's blobs",
    ),
    _bug(
        "rewritten-log-unnoticed",
        OWNER,
        "if mark.position > begin.position and await self._hash_at(mark.position) != mark.hash:",
        "if mark.position > begin.position and await self._hash_at(mark.position) is None:",
        says="a log that lost its tail and went on is not noticed",
    ),
    _bug(
        "own-events-not-missed",
        OWNER,
        "        problem = problem or await self._lost(mark)\n",
        "",
        says="what was lost since the mark was written is not noticed",
    ),
    _bug(
        "doubt-not-obeyed",
        OWNER,
        "        if self.state is Ownership.CONFIRMED:",
        "        if self.state is Ownership.PAUSED:",
        says="a lost connection stops no deletion",
    ),
    _bug(
        "pause-not-obeyed",
        OWNER,
        "        return self.state is Ownership.CONFIRMED",
        "        return self.state is not Ownership.UNKNOWN",
        says="paused reaping goes on",
    ),
    _bug(
        "reconcile-deletes-foreign",
        RECONCILE,
        "                    result.find(Finding.FOREIGN_KEY, blob.key)",
        "                    await self._store.delete(blob.key)",
        says="a blob whose key does not parse is deleted",
    ),
    _bug(
        "reconcile-reports-forgotten-as-residue",
        RECONCILE,
        "return Verdict.FORGOTTEN if lease.outcome is Outcome.FORGOTTEN else Verdict.RESIDUE",
        "return Verdict.RESIDUE",
        says="a blob that an operator kept is deleted",
    ),
    _bug(
        "reconcile-misses-what-is-due",
        RECONCILE,
        "return lease.state is LeaseState.ACTIVE and now < lease.delete_at",
        "return lease.state is LeaseState.ACTIVE",
        says="a blob that was deleted in time is told as missing, until that is recorded",
    ),
    _bug(
        "reconcile-trusts-old-listing",
        RECONCILE,
        "if lease.reclaimed_at >= started_at:",
        "if lease.reclaimed_at is None:",
        says="what was reaped after it was listed is told as a blob that came back",
    ),
)

# From a fetch to its pack. -----------------------------------------------------------------------
_FETCH = (
    _bug(
        "blob-before-row",
        DEPOSIT,
        "        lease = await self._engine.lessor.reserve(\n",
        '        key = f"transient/{self._engine.log_id}/{mpack_id}"\n'
        '        await self._engine.store.put(key, b"begun")\n'
        "        lease = await self._engine.lessor.reserve(\n",
        says="the first bytes are stored before the reservation stands",
    ),
    _bug(
        "put-without-deadline",
        DEPOSIT,
        "deadline = lease.delete_at - timedelta(seconds=policy.upload_margin_seconds)",
        "deadline = lease.delete_at + timedelta(hours=1)",
        says="a put may end after its own cleanup",
    ),
    _bug(
        "refused-activation-leaves-blob",
        DEPOSIT,
        "            await self._delete_own(lease, made.size_bytes, caller)\n",
        "",
        says="a builder who came too late leaves its pack",
    ),
    _bug(
        "truncated-pack-activated",
        STREAM,
        "        if not self.ended:\n",
        "        if not self._stored_bytes:\n",
        says="a store that did not take the whole pack has stored it",
    ),
    _bug(
        "reservation-extended-for-ever",
        DEPOSIT,
        "if self._left(keeping.lease) >= half or keeping.moved == moved:",
        "if self._left(keeping.lease) >= half:",
        says="a store that takes no bytes holds a reservation for a day",
    ),
    _bug(
        "key-reused",
        "gateway/packs/slot_keeper.py",
        "        mpack_id = new_mpack_id()",
        "        mpack_id = new_mpack_id() if slot is None else slot.mpack_id",
        says="a pack is built under an id that was used before",
    ),
    _bug(
        "slot-not-taken-over",
        "gateway/packs/slots.py",
        "AND mpack_id = $5 AND (published OR {_DEAD})",
        "AND mpack_id = $5 AND (published OR false AND {_DEAD})",
        says="a dead builder's slot keeps everybody waiting",
    ),
    _bug(
        "revoke-keeps-slot",
        "gateway/packs/slot_keeper.py",
        "return slot is None or slot.published or slot.dead",
        "return slot is None or slot.dead",
        says="after a revocation nobody can take the slot",
    ),
    _bug(
        "shared-without-renewal",
        SHARING,
        "        if lease.expires_at < expires_at:\n",
        "        if lease.expires_at < slot.now:\n",
        says="a shared URL is promised for longer than its blob lives",
    ),
    _bug(
        "url-outlives-promise",
        "gateway/packs/url_life.py",
        "return max(1, math.ceil((expires_at - begin) / timedelta(seconds=1)))",
        "return max(1, math.ceil((expires_at - begin) / timedelta(seconds=1)) + 2)",
        says="a URL is signed for longer than expires_at",
    ),
)

# How much may be there. --------------------------------------------------------------------------
_QUOTAS = (
    _bug(
        "quota-forgets-own-grants",
        QUOTAS,
        "        for grant in self.grants:\n            if grant.done_at >=",
        "        for grant in ():\n            if grant.done_at >=",
        says="all who ask between two counts get the same room",
    ),
    _bug(
        "quota-counts-twice",
        QUOTAS,
        "if grant.done_at == math.inf\n            for mpack_id",
        "if grant.done_at < 0\n            for mpack_id",
        says="what is being built takes its room twice",
    ),
    _bug(
        "quota-ignores-bytes",
        ROOM,
        "return amount.size_bytes if self.in_bytes else amount.leases",
        "return 0 if self.in_bytes else amount.leases",
        says="a limit on bytes is never reached",
    ),
    _bug(
        "quota-shared-by-nobody",
        ROOM,
        "share = (at_most - used + granted) // (2 * replicas)",
        "share = at_most - used + granted",
        says="every replica takes all the room that it counted",
    ),
    _bug(
        "quota-not-asked",
        SHARING,
        "wanted = {mpack_id: plan.bytes_planned}",
        "wanted = dict.fromkeys((), plan.bytes_planned)",
        says="a pack is stored that has no room",
    ),
    _bug(
        "quota-ignores-plans",
        DEPOSIT,
        "            size_bytes=plan.bytes_planned,\n",
        "",
        says="the bytes of what other replicas build are not counted",
    ),
)

BUGS: tuple[Bug, ...] = _LOG + _LIFE + _REAP + _STORE + _FETCH + _QUOTAS

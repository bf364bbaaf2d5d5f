"""The tables, as everybody may rely on them. Functions, triggers, views and partitions that stand
beside them are SQL, in the migrations' folder `sql/`.

Key columns hold bare lower-case hex or a gateway id, never a `sha256:` prefix.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

_Time = DateTime(timezone=True)


def _created_at() -> Column[object]:
    return Column("created_at", _Time, nullable=False, server_default=func.now())


def _membership(name: str, entity: str) -> Table:
    """Which repo holds what; a repo's deletion removes these rows and nothing else."""
    return Table(
        name,
        metadata,
        Column("repo_id", Text, primary_key=True),
        Column(entity, Text, primary_key=True),
    )


# Content: global, stored once. -------------------------------------------------------------------

repos = Table(
    "repos",
    metadata,
    Column("repo_id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("slug", Text, nullable=False),
    Column("visibility", Text, nullable=False),
    Column("domain", Text, nullable=False, server_default="code"),
    Column("default_branch", Text, nullable=False, server_default="main"),
    _created_at(),
    Column("pushed_at", _Time),
    Column("deleted_at", _Time),
    UniqueConstraint("owner", "slug"),
    CheckConstraint("visibility IN ('public', 'private')", name="visibility"),
)

objects = Table(
    "objects",
    metadata,
    Column("object_id", Text, primary_key=True),
    Column("path", Text, nullable=False, server_default=""),
    Column("size_bytes", BigInteger, nullable=False),
    Column("storage_uri", Text, nullable=False),
    _created_at(),
)

segments = Table(
    "segments",
    metadata,
    Column("mpack_id", Text, primary_key=True),
    Column("storage_key", Text, nullable=False),
    Column("size_bytes", BigInteger),
    Column("sha256", Text),
    Column("codec", Text, nullable=False, server_default="raw"),
    Column("state", Text, nullable=False),
    _created_at(),
    UniqueConstraint("storage_key"),
    CheckConstraint("state IN ('pending', 'live')", name="state"),
)

mpack_index = Table(
    "mpack_index",
    metadata,
    Column("entity_type", Text, nullable=False),
    Column("entity_id", Text, nullable=False),
    Column("mpack_id", Text, nullable=False),
    Column("byte_offset", BigInteger),
    Column("byte_length", BigInteger),
    PrimaryKeyConstraint("entity_type", "entity_id", "mpack_id"),
    Index("ix_mpack_index_mpack_id", "mpack_id"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("snapshot_id", Text, primary_key=True),
    Column("directories", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Column("manifest_blob", LargeBinary),
    Column("base_snapshot_id", Text),
    Column("delta_blob", LargeBinary),
    Column("entry_count", Integer, nullable=False),
    Column("created_at", _Time, nullable=False),
)

commits = Table(
    "commits",
    metadata,
    Column("commit_id", Text, primary_key=True),
    Column("branch", Text, nullable=False),
    Column("parent_ids", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("message", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("timestamp", _Time, nullable=False),
    Column("snapshot_id", Text),
    Column("record", LargeBinary),
    # Commits that other code wrote; none in most databases, and every fetch asks.
    Index("ix_commits_without_record", "commit_id", postgresql_where=text("record IS NULL")),
)

commit_graph = Table(
    "commit_graph",
    metadata,
    Column("commit_id", Text, primary_key=True),
    Column("parent_ids", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("generation", Integer, nullable=False),
    Column("snapshot_id", Text),
    Index("ix_commit_graph_snapshot_id", "snapshot_id"),
)

introductions = Table(
    "introductions",
    metadata,
    Column("object_id", Text, primary_key=True),
    Column("commit_id", Text, primary_key=True),
    Index("ix_introductions_commit_id", "commit_id"),
)

# Membership: per repo. ---------------------------------------------------------------------------

# No index by object. Beside a million of them `gc` would find its next thousand in 0.05 s instead
# of 0.9 s, but a push would insert its own in 40 ms instead of 28, and somebody waits for pushes.
object_refs = _membership("object_refs", "object_id")
snapshot_refs = _membership("snapshot_refs", "snapshot_id")
commit_refs = _membership("commit_refs", "commit_id")

branches = Table(
    "branches",
    metadata,
    Column("repo_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("head_commit_id", Text),
)

tags = Table(
    "tags",
    metadata,
    Column("repo_id", Text, primary_key=True),
    Column("tag_id", Text, primary_key=True),
    Column("commit_id", Text),
    Column("tag", Text),
    Column("created_at", Text),
)

releases = Table(
    "releases",
    metadata,
    Column("repo_id", Text, primary_key=True),
    Column("tag", Text, primary_key=True),
    Column("release_id", Text, nullable=False),
    Column("record", JSONB, nullable=False),
)

# The log. ----------------------------------------------------------------------------------------

event_head = Table(
    "event_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("log_id", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("recorded_at", _Time, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

event_streams = Table(
    "event_streams",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("last_position", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", Uuid, nullable=False),
    Column("stream", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("schema_version", SmallInteger, nullable=False),
    Column("data", Text, nullable=False),
    Column("data_sha", LargeBinary, nullable=False),
    Column("actor", Text, nullable=False),
    Column("request_id", Text),
    Column("recorded_at", _Time, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    # Each partition has UNIQUE (event_id) and UNIQUE (stream, version) of its own; event_streams
    # anchors both across partitions.
    postgresql_partition_by="RANGE (position)",
)

# Leases. -----------------------------------------------------------------------------------------

mpack_leases = Table(
    "mpack_leases",
    metadata,
    # Fold columns: a function of the log alone.
    Column("mpack_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("repo_id", Text, nullable=False),
    Column("object_id", Text),
    Column("storage_key", Text, nullable=False),
    Column("cache_key", Text),
    Column("state", Text, nullable=False),
    Column("sha256", Text),
    Column("size_bytes", BigInteger),
    Column("granted_at", _Time, nullable=False),
    Column("activated_at", _Time),
    Column("expires_at", _Time),
    Column("delete_at", _Time, nullable=False),
    Column("revoked_at", _Time),
    Column("stuck", Boolean, nullable=False, server_default=text("false")),
    Column("reclaimed_at", _Time),
    Column("outcome", Text),
    Column("lateness_ms", BigInteger),
    Column("version", Integer, nullable=False),
    Column("last_position", BigInteger, nullable=False),
    # Work columns: the reaper's notes, not in the log.
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", _Time),
    Column("last_error", Text),
    Column("claimed_by", Text),
    Column("claimed_until", _Time),
    Column("claim_token", Uuid),
    UniqueConstraint("storage_key"),
    CheckConstraint("storage_key LIKE 'transient/%'", name="transient_only"),
    CheckConstraint("kind IN ('pack', 'upload')", name="kind"),
    CheckConstraint("state IN ('reserved', 'active', 'reclaimed')", name="state"),
    # What is due: a claim or a later attempt moves a row on by itself, so the index is ordered by
    # the moment somebody has to look at the row, and the claim reads it from the left.
    Index(
        "ix_mpack_leases_due",
        text("GREATEST(delete_at, next_attempt_at, claimed_until)"),
        postgresql_where=text("state <> 'reclaimed'"),
    ),
    Index(
        "ix_mpack_leases_claimed_by",
        "claimed_by",
        postgresql_where=text("claimed_by IS NOT NULL"),
    ),
    Index("ix_mpack_leases_repo_id_mpack_id", "repo_id", "mpack_id"),
    # A repo's open leases, what falls due next first: counted for quotas without reading the rows.
    Index(
        "ix_mpack_leases_open",
        "repo_id",
        text("GREATEST(delete_at, next_attempt_at, claimed_until)"),
        postgresql_include=["mpack_id", "size_bytes", "kind"],
        postgresql_where=text("state <> 'reclaimed'"),
    ),
    Index(
        "ix_mpack_leases_upload",
        "repo_id",
        "object_id",
        postgresql_where=text("kind = 'upload' AND state <> 'reclaimed'"),
    ),
)

pack_slots = Table(
    "pack_slots",
    metadata,
    Column("cache_key", Text, primary_key=True),
    Column("mpack_id", Text, nullable=False),
    Column("built_by", Text, nullable=False),
    Column("build_until", _Time, nullable=False),
    Column("published", Boolean, nullable=False, server_default=text("false")),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("name", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("repos", ARRAY(Text)),
    Column("created_at", _Time, nullable=False),
    Column("expires_at", _Time),
    Column("revoked_at", _Time),
    Column("last_used_at", _Time),
    UniqueConstraint("sha256"),
)

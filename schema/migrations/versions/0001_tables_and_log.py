"""All tables, the log's functions, and the lease projection's fold."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from schema.migrations.statements import run_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_tokens",
        sa.Column("token_id", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("repos", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_tokens_sha256")),
    )
    op.create_table(
        "branches",
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("head_commit_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("repo_id", "name", name=op.f("pk_branches")),
    )
    op.create_table(
        "commit_graph",
        sa.Column("commit_id", sa.Text(), nullable=False),
        sa.Column(
            "parent_ids",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
        ),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("snapshot_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("commit_id", name=op.f("pk_commit_graph")),
    )
    op.create_table(
        "commit_refs",
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("commit_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("repo_id", "commit_id", name=op.f("pk_commit_refs")),
    )
    op.create_table(
        "commits",
        sa.Column("commit_id", sa.Text(), nullable=False),
        sa.Column("branch", sa.Text(), nullable=False),
        sa.Column(
            "parent_ids",
            sa.ARRAY(sa.Text()),
            server_default=sa.text("'{}'::text[]"),
            nullable=False,
        ),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("snapshot_id", sa.Text(), nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("commit_id", name=op.f("pk_commits")),
    )
    op.create_table(
        "event_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_event_head_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_head")),
    )
    op.create_table(
        "event_streams",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stream", name=op.f("pk_event_streams")),
    )
    op.create_table(
        "events",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.SmallInteger(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("data_sha", sa.LargeBinary(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_events")),
        postgresql_partition_by="RANGE (position)",
    )
    op.create_table(
        "introductions",
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("commit_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("object_id", "commit_id", name=op.f("pk_introductions")),
    )
    op.create_index("ix_commit_graph_snapshot_id", "commit_graph", ["snapshot_id"], unique=False)
    op.create_index(
        "ix_commits_without_record",
        "commits",
        ["commit_id"],
        unique=False,
        postgresql_where=sa.text("record IS NULL"),
    )
    op.create_index("ix_introductions_commit_id", "introductions", ["commit_id"], unique=False)
    op.create_table(
        "mpack_index",
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Text(), nullable=False),
        sa.Column("mpack_id", sa.Text(), nullable=False),
        sa.Column("byte_offset", sa.BigInteger(), nullable=True),
        sa.Column("byte_length", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint(
            "entity_type", "entity_id", "mpack_id", name=op.f("pk_mpack_index")
        ),
    )
    op.create_index("ix_mpack_index_mpack_id", "mpack_index", ["mpack_id"], unique=False)
    op.create_table(
        "mpack_leases",
        sa.Column("mpack_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("cache_key", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("activated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delete_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stuck", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("reclaimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("lateness_ms", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claim_token", sa.Uuid(), nullable=True),
        sa.CheckConstraint("kind IN ('pack', 'upload')", name=op.f("ck_mpack_leases_kind")),
        sa.CheckConstraint(
            "state IN ('reserved', 'active', 'reclaimed')", name=op.f("ck_mpack_leases_state")
        ),
        sa.CheckConstraint(
            "storage_key LIKE 'transient/%'", name=op.f("ck_mpack_leases_transient_only")
        ),
        sa.PrimaryKeyConstraint("mpack_id", name=op.f("pk_mpack_leases")),
        sa.UniqueConstraint("storage_key", name=op.f("uq_mpack_leases_storage_key")),
    )
    op.create_index(
        "ix_mpack_leases_claimed_by",
        "mpack_leases",
        ["claimed_by"],
        unique=False,
        postgresql_where=sa.text("claimed_by IS NOT NULL"),
    )
    op.create_index(
        "ix_mpack_leases_due",
        "mpack_leases",
        [sa.literal_column("GREATEST(delete_at, next_attempt_at, claimed_until)")],
        unique=False,
        postgresql_where=sa.text("state <> 'reclaimed'"),
    )
    op.create_index(
        "ix_mpack_leases_open",
        "mpack_leases",
        ["repo_id", sa.literal_column("GREATEST(delete_at, next_attempt_at, claimed_until)")],
        unique=False,
        postgresql_include=["mpack_id", "size_bytes", "kind"],
        postgresql_where=sa.text("state <> 'reclaimed'"),
    )
    op.create_index(
        "ix_mpack_leases_repo_id_mpack_id", "mpack_leases", ["repo_id", "mpack_id"], unique=False
    )
    op.create_index(
        "ix_mpack_leases_upload",
        "mpack_leases",
        ["repo_id", "object_id"],
        unique=False,
        postgresql_where=sa.text("kind = 'upload' AND state <> 'reclaimed'"),
    )
    op.create_table(
        "object_refs",
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("repo_id", "object_id", name=op.f("pk_object_refs")),
    )
    op.create_table(
        "objects",
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), server_default="", nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("storage_uri", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("object_id", name=op.f("pk_objects")),
    )
    op.create_table(
        "pack_slots",
        sa.Column("cache_key", sa.Text(), nullable=False),
        sa.Column("mpack_id", sa.Text(), nullable=False),
        sa.Column("built_by", sa.Text(), nullable=False),
        sa.Column("build_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("published", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("cache_key", name=op.f("pk_pack_slots")),
    )
    op.create_table(
        "releases",
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("record", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("repo_id", "tag", name=op.f("pk_releases")),
    )
    op.create_table(
        "repos",
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("visibility", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text(), server_default="code", nullable=False),
        sa.Column("default_branch", sa.Text(), server_default="main", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("visibility IN ('public', 'private')", name=op.f("ck_repos_visibility")),
        sa.PrimaryKeyConstraint("repo_id", name=op.f("pk_repos")),
        sa.UniqueConstraint("owner", "slug", name=op.f("uq_repos_owner_slug")),
    )
    op.create_table(
        "segments",
        sa.Column("mpack_id", sa.Text(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("codec", sa.Text(), server_default="raw", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("state IN ('pending', 'live')", name=op.f("ck_segments_state")),
        sa.PrimaryKeyConstraint("mpack_id", name=op.f("pk_segments")),
        sa.UniqueConstraint("storage_key", name=op.f("uq_segments_storage_key")),
    )
    op.create_table(
        "snapshot_refs",
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("repo_id", "snapshot_id", name=op.f("pk_snapshot_refs")),
    )
    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column(
            "directories",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("manifest_blob", sa.LargeBinary(), nullable=True),
        sa.Column("base_snapshot_id", sa.Text(), nullable=True),
        sa.Column("delta_blob", sa.LargeBinary(), nullable=True),
        sa.Column("entry_count", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_snapshots")),
    )
    op.create_table(
        "tags",
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("tag_id", sa.Text(), nullable=False),
        sa.Column("commit_id", sa.Text(), nullable=True),
        sa.Column("tag", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("repo_id", "tag_id", name=op.f("pk_tags")),
    )
    run_file("0001_log.sql")


def downgrade() -> None:
    run_file("0001_log_down.sql")
    op.drop_table("tags")
    op.drop_table("snapshots")
    op.drop_table("snapshot_refs")
    op.drop_table("segments")
    op.drop_table("repos")
    op.drop_table("releases")
    op.drop_table("pack_slots")
    op.drop_table("objects")
    op.drop_table("object_refs")
    op.drop_index("ix_mpack_leases_repo_id_mpack_id", table_name="mpack_leases")
    op.drop_index(
        "ix_mpack_leases_open",
        table_name="mpack_leases",
        postgresql_where=sa.text("state <> 'reclaimed'"),
    )
    op.drop_index(
        "ix_mpack_leases_due",
        table_name="mpack_leases",
        postgresql_where=sa.text("state <> 'reclaimed'"),
    )
    op.drop_index(
        "ix_mpack_leases_claimed_by",
        table_name="mpack_leases",
        postgresql_where=sa.text("claimed_by IS NOT NULL"),
    )
    op.drop_table("mpack_leases")
    op.drop_index("ix_mpack_index_mpack_id", table_name="mpack_index")
    op.drop_table("mpack_index")
    op.drop_index("ix_introductions_commit_id", table_name="introductions")
    op.drop_table("introductions")
    op.drop_table("event_streams")
    op.drop_table("event_head")
    op.drop_index(
        "ix_commits_without_record",
        table_name="commits",
        postgresql_where=sa.text("record IS NULL"),
    )
    op.drop_table("commits")
    op.drop_table("commit_refs")
    op.drop_index("ix_commit_graph_snapshot_id", table_name="commit_graph")
    op.drop_table("commit_graph")
    op.drop_table("branches")
    op.drop_table("api_tokens")

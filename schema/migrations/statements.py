"""Run a file of SQL statements inside a migration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import context, op
from sqlalchemy import text


def run_file(name: str) -> None:
    """Run `sql/<name>` with `:schema` replaced by the schema that the tables live in."""
    statements = (Path(__file__).parent / "sql" / name).read_text(encoding="utf-8")
    if context.is_offline_mode():
        op.execute(statements.replace(":schema,", "public,"))
        return
    bind = op.get_bind()
    schema = bind.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    # The extended protocol takes one statement at a time; the driver's simple one takes a file.
    driver: Any = bind.connection.dbapi_connection
    driver.run_async(
        lambda connection: connection.execute(statements.replace(":schema,", f"{schema},"))
    )

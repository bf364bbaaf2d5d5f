"""Ctrl-C in the middle: the batch under way is finished, the rest is left as it was."""

from __future__ import annotations

import signal
import subprocess
import sys

from gateway.service import Service
from leases.ids import new_mpack_id
from leases.model import LeaseKind
from tests.databases import run_apart
from tests.integration.commands import CALLER, Commands
from tests.integration.gateways import settings_for

LEASES = 400


def make_due(commands: Commands) -> None:
    """Reservations that were given up: due, each in the log as every lease is."""

    async def work() -> None:
        settings = settings_for(commands.database_url, commands.data_dir)
        async with Service(settings, watch=False) as service:
            lessor = service.engine.lessor
            for _ in range(LEASES):
                mpack_id = new_mpack_id()
                await lessor.reserve(
                    mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="r", caller=CALLER
                )
                await lessor.revoke(mpack_id, reason="test", caller=CALLER)

    run_apart(work())


def test_a_sweep_that_is_interrupted_ends_behind_its_batch(commands: Commands) -> None:
    make_due(commands)
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "sweep"],
        env=commands.whole_environ | {"MPACK_REAP_BATCH": "5", "MPACK_REAP_WORKERS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().strip() == f"reclaimed: 5 of {LEASES}"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 4, err
    assert "Finishing the batch under way" in err
    assert "Traceback" not in err
    assert out.startswith("claimed")
    done = commands.sql("SELECT count(*) FROM mpack_leases WHERE state = 'reclaimed'")
    assert isinstance(done, int)
    assert 0 < done < LEASES
    assert done % 5 == 0
    assert commands.sql("SELECT count(claimed_by) FROM mpack_leases") == 0
    assert commands.json("sweep")["reclaimed"] == LEASES - done
    commands.run("audit", "verify")

"""The lease engine in a simulated world, a few hundred times faster than the real one.

    python -m tests.simulation                       ten random seeds, printed
    python -m tests.simulation --seed 7 --runs 1     that very run again, to the last step
    python -m tests.simulation --seconds 3600        an hour of it for each seed

The code is the product's: engine, lessor, log, reaper, alarm, sweeps, owner and reconcile. What is
simulated stands behind its ports: the event loop and all clocks (`loop`, `clocks`), the database
(`records` behind `ledger`, held to PostgreSQL's behaviour by
tests/integration/test_ledger_conformance.py), the store (`store`), and the ways between them
(`network`). Faults come in storms with calm in between (`faults`); the oracle looks at every effect
and at what is left (`oracle`). Everything is drawn from the seed, so a seed is a whole run.
"""

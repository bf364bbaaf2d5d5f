"""What the gateway costs and how late it is, measured on real things: `python -m benchmarks`.

An embedded PostgreSQL that waits for the disk (fsync on), the local store on disk, and the service
as it is put together for production, in processes of their own. Every run measures a control
beside it, the least work that could do the same, in turns: on a busy machine the ratio of the two
says more than either. Figures are printed and kept; nothing here passes or fails.

    figures, report         what a benchmark answers; JSON, the table, the page
    place, machine          a server, fresh databases, the service, processes; what it ran on
    load, database_time     callers in a loop; when did it happen, by the database's clock
    plain_inserts, million  the control of what is appended; leases that are not yet due
    lateness, appends, grants, reclaims, idle, packs        one benchmark each
"""

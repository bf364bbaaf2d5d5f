"""What takes too long for every change: run by night, and kept.

    python -m tests.nightly                     everything, the quickest part first
    python -m tests.nightly PART [PART …]       some of it
    python -m tests.nightly --list              what there is
    python -m tests.nightly --seed N            repeat a night

Every part is a command of its own and may be run by hand; each keeps a JSON file in the results
folder (`tests/results`, or `--results`), and `nightly.json` there says how each of them ended.
"""

"""Bugs that we plant ourselves, to see that the tests would find them.

    python -m tests.planted                        every bug; prints the table
    python -m tests.planted --bug NAME             one of them, or several
    python -m tests.planted --layer simulation     ask one layer by itself, of all that it may find
    python -m tests.planted --json PATH            keep what was found, beside what was before
    python -m tests.planted --page …               write docs/planted-bugs.md

A bug is one small edit of one file (`bugs.py`), made in a copy of the tree. Then the layers of
tests (`layers.py`) run from quick to slow, each narrowed to what watches that file, until one
fails. A bug that none of them finds is a test that is missing.
"""

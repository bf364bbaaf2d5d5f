"""`python -m gateway` is the command line, too."""

from __future__ import annotations

from gateway.cli import main

if __name__ == "__main__":
    main(prog_name="mpack-gateway")

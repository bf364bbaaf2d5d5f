# Sourced by install.sh and lock.sh: sets `python` to an interpreter of at least 3.11 that runs.
# shellcheck shell=sh

enough='import sys, venv; sys.exit(sys.version_info < (3, 11))'

python=
for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
	if "$candidate" -c "$enough" >/dev/null 2>&1; then
		python=$candidate
		break
	fi
done
if [ -z "$python" ]; then
	echo "No Python 3.11 or newer with the venv module found${PYTHON:+ at $PYTHON}." >&2
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2
	exit 1
fi

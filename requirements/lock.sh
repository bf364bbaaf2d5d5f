#!/bin/sh
# Write run.txt, test.txt, check.txt and bench.txt: one resolution for Python 3.11 and newer on any
# platform, as names, versions and hashes, and nothing of the machine that ran it.
set -eu

cd "$(dirname "$0")/.."
. requirements/python.sh

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" --disable-pip-version-check install --quiet uv

compile() { # compile LOCKFILE OPTIONS...: what is pinned there already stays, unless UPGRADE is set
	lock=$1
	shift
	"$work/venv/bin/uv" pip compile --quiet pyproject.toml --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--exclude-newer "7 days" --output-file "requirements/$lock" ${UPGRADE:+--upgrade} \
		--extra dev-server --group build "$@"
}

# The largest first; the smaller ones take its versions.
compile check.txt --group test --group check
UPGRADE=
compile bench.txt --group test --group bench --constraint requirements/check.txt
compile test.txt --group test --constraint requirements/check.txt
compile run.txt --constraint requirements/check.txt

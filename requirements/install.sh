#!/bin/sh
# install.sh VENV LOCKFILE: make the virtualenv if it is missing, install the locked packages (pip
# refuses any file whose hash is not in the lock), then the project itself, editable.
set -eu

venv=$1
lock=$2

if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
	. "$(dirname "$0")/python.sh"
	echo "Making $venv with $("$python" --version) ..."
	# Some distributions ship venv without ensurepip; the interpreter's own pip then does the work.
	"$python" -m venv --clear "$venv" >/dev/null 2>&1 ||
		"$python" -m venv --clear --without-pip "$venv"
fi

pip() {
	if "$venv/bin/python" -c 'import pip' >/dev/null 2>&1; then
		"$venv/bin/python" -m pip --disable-pip-version-check "$@"
	else
		base=$("$venv/bin/python" -c 'import sys; print(sys._base_executable)')
		"$base" -m pip --disable-pip-version-check --python "$venv/bin/python" "$@"
	fi
}

echo "Installing $lock ..."
# The lock names every package there is, so nothing is resolved. Resolving could even fail: asked by
# pytest-cov for coverage[toml], pip before 23.3 takes the newest coverage rather than the locked one.
pip install --quiet --no-deps --require-hashes -r "$lock"
# The build backend is in the lock too, so nothing is fetched here.
pip install --quiet --no-deps --no-build-isolation --editable .

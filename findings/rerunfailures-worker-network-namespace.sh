#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# pytest-rerunfailures 16.7, merely installed, ends every run of pytest-xdist whose workers have a network namespace of their own.
#
# Tests of network software commonly unshare(2) in pytest_configure of a conftest.py. Without --reruns being given, the plugin still has each
# worker connect to a server of the controller's on 127.0.0.1, where a new namespace reaches nothing: its loopback device is down. Workers
# end with an internal error, "Network is unreachable", before a test runs, and the controller with another one (KeyError). Exit code 3.
# With `-p no:rerunfailures`, or without workers, all is well.
#
# Seen with pytest 9.2.0, pytest-xdist 3.8.0, pytest-rerunfailures 16.7, Python 3.11, as root. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check \
	pytest==9.2.0 pytest-xdist==3.8.0 pytest-rerunfailures==16.7
cat >"$room/conftest.py" <<'PYTHON'
import ctypes

CLONE_NEWNET = 0x40000000


def pytest_configure(config):
    assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
PYTHON
echo 'def test_it(): pass' >"$room/test_it.py"
cd "$room"

ends() { # arguments of pytest: its exit code
	local code=0
	venv/bin/python -m pytest -q -p no:cacheprovider "$@" >said 2>&1 || code=$?
	echo "$code"
}

workers=$(ends -n 1)
cause=$(grep -m 1 -o 'OSError: .*' said)
without=$(ends -n 1 -p no:rerunfailures) alone=$(ends -n 0)
echo "exit codes: with a worker $workers ($cause), the plugin left out $without, no worker $alone"
[ "$workers $without $alone" = "3 0 0" ]
[ "$cause" = "OSError: [Errno 101] Network is unreachable" ]

#!/bin/sh
# Make a virtual environment in $1 with the first Python found that the mesh runs on: $PYTHON, or 3.11 or 3.12 on PATH.
set -eu
for candidate in ${PYTHON:-} python3 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        if "$candidate" -m venv --clear "$1" 2>/dev/null; then
            exit 0
        fi
        echo "visionmesh: $candidate cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
done
echo "visionmesh: no Python 3.11 or 3.12 found; install one, or say PYTHON=/path/to/python3.12 make ..." >&2
exit 2

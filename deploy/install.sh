#!/bin/sh
# Install this project with the extra $1 into the virtual environment $2 (.venv), at the versions of constraints.txt. uv does it in
# seconds; where uv cannot reach the package index the way pip is configured to, pip does.
set -eu
venv=${2:-.venv}
bin=$venv/bin
started=$(date +%s)
echo "Installing visionmesh[$1] into $venv (once; a minute or two) ..."
[ -x $bin/uv ] || $bin/python -m pip install --quiet --disable-pip-version-check uv
if ! $bin/uv pip install --quiet --python $bin/python --constraint constraints.txt --editable ".[$1]" 2>$venv/uv.log; then
    $bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$1]" || {
        cat $venv/uv.log >&2
        exit 1
    }
fi
echo "Installed in $(($(date +%s) - started)) s."

#!/usr/bin/env bash
# Set .venv up, check style and types, and run the tests in two processes. Arguments go to pytest:
#
#   scripts/test.sh -m "not slow" tests/test_fusion.py
#   scripts/test.sh -n 8          in eight processes; -n 0: in this one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME  # the tests are about what is installed in .venv
export MPLBACKEND=Agg
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"  # threads that wait do not take a core from other work for long
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # on small tensors threads mostly wait for each other

bash scripts/setup.sh --dev
.venv/bin/python -m ruff check
.venv/bin/python -m ruff format --check
.venv/bin/python -m mypy & types=$!  # beside the tests, since it is one process and they wait at times
trap 'kill "$types" 2>/dev/null || true' EXIT
# All tests of a file run in one process, which makes its fixtures once. Warnings of our own are errors.
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --quiet --disable-warnings "$@"
wait "$types" || { echo "test.sh: mypy has found errors, printed above" >&2; exit 1; }

#!/usr/bin/env bash
# Set .venv up, lint, and run the tests; arguments go to pytest:
#
#   scripts/test.sh -m "not slow" tests/test_fusion.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME  # the tests are about what is installed in .venv
export MPLBACKEND=Agg
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # on small tensors threads mostly wait for each other

bash scripts/setup.sh --dev
.venv/bin/python -m ruff check
.venv/bin/python -m pytest "$@"

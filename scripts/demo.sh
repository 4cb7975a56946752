#!/usr/bin/env bash
# Set .venv up and run the demonstration, into the folder demo. Run it again to go on. Arguments go to `ocl-msf demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m ocl_msf demo "$@"

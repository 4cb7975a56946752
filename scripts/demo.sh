#!/usr/bin/env bash
# The main job on data that it makes itself: scenes, shards, VAE, SLATE, scores, a picture. Run it again to go on.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python scripts/demo.py "$@"

#!/usr/bin/env bash
# Make .venv in this checkout, with the host and the plugin installed in place. Run again: nothing changed, nothing done.
#
#   scripts/setup.sh          what training and evaluation need
#   scripts/setup.sh --dev    what the tests need as well
#
# PYTHON=python3.12 chooses the interpreter, 3.9 or newer. Without it, a .venv keeps its own and a new one takes python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME  # what they name would count as installed

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

stamp=.venv/ocl-msf-setup  # what was installed; written last, so that a broken run leaves none
case "$*" in
    "") if grep -qs '^Python .*\[dev\]' "$stamp"; then extras="[dev]"; else extras=""; fi ;;
    --dev) extras="[dev]" ;;
    *) die "unknown arguments '$*'; the only one there is: --dev" ;;
esac

behind_venv='import sys; print("{}/bin/python{}.{}".format(sys.base_prefix, *sys.version_info))'
python="${PYTHON:-$(.venv/bin/python -c "$behind_venv" 2>/dev/null || echo python3)}"
version="$(version_of "$python")" || die "cannot run '$python': install Python 3.9 or newer, or set PYTHON to one"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    die "'$python' is Python $version, but the host needs 3.9 or newer: set PYTHON to one (for 3.8, see README.md: OCLF)"

wanted="Python $version, ocl-msf$extras in $PWD
$(cat pyproject.toml host/pyproject.toml)"
if [[ -x .venv/bin/python && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    say ".venv is up to date (Python $version)"
    exit 0
fi

rm -f "$stamp"
if [[ "$(version_of .venv/bin/python || true)" != "$version" ]] || ! .venv/bin/python -m pip --version &>/dev/null; then
    say "making .venv with Python $version"
    "$python" -m venv --clear .venv || die "'$python -m venv' failed (on Debian and Ubuntu: apt install python3-venv)"
fi
say "upgrading pip"
.venv/bin/python -m pip install --quiet --upgrade pip
say "installing host/ and ocl-msf$extras; the first time this loads PyTorch, which takes some minutes"
.venv/bin/python -m pip uninstall --quiet --yes ocl 2>/dev/null  # what host/ was called before
.venv/bin/python -m pip install --quiet --editable ./host --editable ".$extras"
echo "$wanted" >"$stamp"
say "done: source .venv/bin/activate"

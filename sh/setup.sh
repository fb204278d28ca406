# Sourced by the other scripts: goes to the project root, makes .venv if it is not there, installs what has changed.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
  for python in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then break; fi
    python=
  done
  if [ -z "${python:-}" ]; then echo "error: Python 3.10 or later is needed" >&2; exit 2; fi
  "$python" -m venv .venv
fi
# installed once for each requirements.txt: the copy beside the environment says which
if ! cmp -s requirements.txt .venv/requirements.installed; then
  echo "installing into .venv (once, a few minutes)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt .venv/requirements.installed
fi
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false

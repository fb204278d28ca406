#!/usr/bin/env bash
# Style, then tests. `bash sh/test.sh tests/models -k golden` passes its arguments to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"  # in two processes

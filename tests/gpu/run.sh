#!/usr/bin/env bash
# What this system takes on a GPU: peak memory of every line of the hardware table, trials and pictures per second.
#
#     bash tests/gpu/run.sh            # published sizes, random weights, nothing is fetched; about 6 minutes
#     bash tests/gpu/run.sh --small    # tiny sizes on the CPU, in seconds: so that it works when a GPU is there
#     bash tests/gpu/run.sh --only nf4 bf16
#
# A bare machine needs Python, PyTorch and transformers. WHEELS names a folder of wheels for what it lacks; they are
# unpacked into a folder of their own, and the machine is left as it is. Made where there is a network:
#     pip download --no-deps -d wheels diffusers==… peft==… accelerate==… lmdb==… zlib-ng==… scipy==… matplotlib==… …
# bitsandbytes is as large as all others: take it alone, in a second go with --only nf4. What is not there is named.
# OUT (default: outputs/gpu) is where check.md and check.json are left. Exit code 1: a line failed, or is over its limit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
if [ -n "${WHEELS:-}" ]; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$place" "$WHEELS"/*.whl
  export PYTHONPATH="$place${PYTHONPATH:+:$PYTHONPATH}"
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" tests/gpu/check.py --output_dir "${OUT:-outputs/gpu}" "$@"

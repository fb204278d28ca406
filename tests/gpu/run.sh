#!/usr/bin/env bash
# What this system takes on a GPU: peak memory of every line of the hardware table, trials and pictures per second.
#
#     bash tests/gpu/run.sh            # published sizes, random weights, nothing is fetched; about 6 minutes, estimated
#     bash tests/gpu/run.sh --small    # tiny sizes on the CPU, in seconds: so that it works when a GPU is there
#     bash tests/gpu/run.sh --only nf4 bf16
#
# A bare machine needs Python, PyTorch and transformers. WHEELS names a folder of wheels for what it lacks; they are
# unpacked into the folder PLACE, which stays for a second go, or else into one that is removed. Made with a network:
#     get() { pip download --no-deps -d "$1" -r <(grep -E "^(${2// /|})==" requirements.txt) "${@:3}"; }
#     get wheels "accelerate diffusers peft lmdb zlib-ng scipy pillow requests" psutil urllib3 charset-normalizer \
#       importlib-metadata zipp lazy-importer                                                          # 50 MB
#     get more "bitsandbytes matplotlib" contourpy cycler kiwisolver pyparsing python-dateutil tzdata fonttools  # 58 MB
#     PLACE=unpacked WHEELS=wheels bash tests/gpu/run.sh      # without NF4, and without the same command twice
#     PLACE=unpacked WHEELS=more bash tests/gpu/run.sh --only nf4 decode twice
# A line whose library is not there says so.
# OUT (default: outputs/gpu) is where check.md and check.json are left. Exit code 1: a line failed, or is over its limit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
if [ -n "${WHEELS:-}" ]; then
  place=${PLACE:-$(mktemp -d)}
  if [ -z "${PLACE:-}" ]; then trap 'rm -rf "$place"' EXIT; fi
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$place" "$WHEELS"/*.whl
  export PYTHONPATH="$place${PYTHONPATH:+:$PYTHONPATH}"
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" tests/gpu/check.py --output_dir "${OUT:-outputs/gpu}" "$@"

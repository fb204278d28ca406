#!/usr/bin/env bash
# Leave one subject out: one fold a person, from one store and one token cache (the frozen encoder runs once in all).
# `bash sh/loso.sh FOLDER PERSON… -- FLAGS of finetune_eeg_llm.py`: fold PERSON goes to FOLDER/PERSON; then one table.
# The person `all` means all people of the store. Seeds, other scripts, several at once: sweep.py itself.
#   bash sh/loso.sh pth_downtasks/loso all -- --downstream_dataset BCICIV2a \
#     --datasets_dir data/BCICIV2a/processed_lmdb --foundation_dir pth/CSBrain.pth
set -euo pipefail
source "$(dirname "$0")/setup.sh"
folder=${1:-} people=()
shift || true
while [ $# -gt 0 ] && [ "$1" != -- ]; do people+=("$1"); shift; done
if [ $# = 0 ]; then echo "error: say FOLDER PERSON… -- FLAGS; the -- is missing" >&2; exit 2; fi
shift
python sweep.py --protocol "${people[@]/#/loso:}" --output_dir "$folder" -- python finetune_eeg_llm.py "$@"

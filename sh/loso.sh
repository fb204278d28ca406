#!/usr/bin/env bash
# Leave one subject out: one fold a person, from one store and one token cache (the frozen encoder runs once in all).
# `bash sh/loso.sh FOLDER PERSON… -- FLAGS of finetune_eeg_llm.py`: fold PERSON goes to FOLDER/PERSON; then one table.
#   bash sh/loso.sh pth_downtasks/loso A01 A02 A03 A04 A05 A06 A07 A08 A09 -- --downstream_dataset BCICIV2a \
#     --datasets_dir data/BCICIV2a/processed_lmdb --foundation_dir pth/CSBrain.pth
set -euo pipefail
source "$(dirname "$0")/setup.sh"
folder=$1 people=()
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do people+=("$1"); shift; done
shift
for person in "${people[@]}"; do
  echo "== fold $person"
  python finetune_eeg_llm.py --protocol "loso:$person" --model_dir "$folder/$person" "$@"
done
python evaluate.py "${people[@]/#/$folder/}" --output_dir "$folder/tables"

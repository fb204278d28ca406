#!/usr/bin/env bash
# The seed's training command for BCIC-IV-2a; further flags are passed on, e.g. --token_pooling hemisphere.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
python finetune_eeg_llm.py --downstream_dataset BCICIV2a --datasets_dir data/BCICIV2a/processed_lmdb \
  --model_dir pth_downtasks/eeg_llm_bcic_new --use_pretrained_weights --foundation_dir pth/CSBrain.pth \
  --epochs 20 --warmup_epochs 5 --batch_size 4 --gradient_accumulation_steps 8 --lr 2e-4 --cuda 0 "$@"

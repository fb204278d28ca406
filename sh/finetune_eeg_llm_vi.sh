#!/usr/bin/env bash
# The seed's text training command for Visual Imagery; further flags are passed on, e.g. --shuffle_labels.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
python finetune_eeg_llm.py --downstream_dataset VI --datasets_dir data/VisualImagery/processed_lmdb \
  --model_dir pth_downtasks/eeg_llm_vi --use_pretrained_weights --foundation_dir pth/CSBrain.pth \
  --epochs 10 --warmup_epochs 3 --batch_size 4 --gradient_accumulation_steps 8 --lr 2e-4 --cuda 0 "$@"

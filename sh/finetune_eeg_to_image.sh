#!/usr/bin/env bash
# The seed's mapper training command for Visual Imagery; further flags are passed on, e.g. --mapper mlp.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
python finetune_eeg_to_image.py --datasets_dir data/VisualImagery/processed_lmdb \
  --stimuli_dir data/VisualImagery/stimuli --foundation_dir pth/CSBrain.pth --output_dir pth_downtasks/eeg_direct \
  --epochs 20 --warmup_epochs 5 --batch_size 16 --lr 5e-4 \
  --lambda_cls 5.0 --lambda_contrastive 2.0 --lambda_cos 1.0 --lambda_mse 0.1 --temperature 0.5 --cuda 0 "$@"

#!/usr/bin/env bash
# The seed's generation command for BCIC-IV-2a, on the run's best epoch; further flags are passed on.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
python generate.py --foundation_dir pth/CSBrain.pth --projection_dir pth_downtasks/eeg_llm_bcic_new \
  --datasets_dir data/BCICIV2a/processed_lmdb --downstream_dataset BCICIV2a --num_samples 20 --generate_images \
  --image_model stabilityai/stable-diffusion-2-1 --output_dir outputs/eeg2image "$@"

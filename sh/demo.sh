#!/usr/bin/env bash
# The embedded default, end to end, on the CPU and without any model hub: planted recordings → store → EEG-to-text
# training with its shuffled-labels twin → decoding → pictures. `bash sh/demo.sh`; a second run reuses what it made.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1  # proof that nothing is fetched
data=data/demo/BCICIV2a pth=pth/demo runs=pth_downtasks/demo images=outputs/demo
started=$SECONDS
rm -rf "$runs" "$images"  # an earlier demo's results; recordings and stand-ins stay

echo "== recordings and stand-ins"
python prepare_demo.py --data_dir data/demo --pth_dir $pth
echo "== recordings → trial store"
python prepare_data.py --skip_download --raw_dir $data/raw --lmdb_dir $data/processed_lmdb --overwrite

train() { # name of the run, further flags
  name=$1; shift
  python finetune_eeg_llm.py --downstream_dataset BCICIV2a --datasets_dir $data/processed_lmdb \
    --model_dir $runs/"$name" --foundation_dir $pth/CSBrain.pth --llm $pth/TinyLlama-1.1B-Chat-v1.0 \
    --epochs 12 --warmup_epochs 3 --batch_size 8 --gradient_accumulation_steps 1 --warmup_lr 2e-3 --lr 2e-3 \
    --cuda -1 "$@"
}
echo "== training: EEG → text, hemisphere means"
train bcic_hemisphere --token_pooling hemisphere
echo "== training, two at a time: its shuffled-labels twin; region means and their twin ($runs/*.log)"
export OMP_NUM_THREADS=1
train bcic_region --token_pooling region > $runs/region.log 2>&1 & region=$!
train bcic_hemisphere_shuffled --token_pooling hemisphere --shuffle_labels
wait $region
train bcic_region_shuffled --token_pooling region --shuffle_labels > $runs/region_shuffled.log 2>&1 & region=$!

echo "== EEG → text → image"
python generate.py --downstream_dataset BCICIV2a --datasets_dir $data/processed_lmdb \
  --foundation_dir $pth/CSBrain.pth --projection_dir $runs/bcic_hemisphere \
  --num_samples 16 --generate_images --image_model $pth/stable-diffusion-2-1 --output_dir $images/bcic --cuda -1
wait $region

echo
echo "== planted recordings, people never trained on (A08, A09); real EEG is far harder"
python evaluate.py $runs/bcic_hemisphere $runs/bcic_region --output_dir $images/tables
echo "pictures: $images/bcic/summary_grid.png"
echo "took $((SECONDS - started)) s"

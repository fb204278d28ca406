#!/usr/bin/env bash
# The embedded default: all three pipelines, end to end, on the CPU and without any model hub. Simulated recordings →
# stores → training with its shuffled-label control → decoding → pictures. `bash sh/demo.sh`; a second run reuses the
# recordings and tiny models. From the second training on two run at a time, one thread each; the second's words go to a
# log.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
source sh/demo_runs.sh
export HF_HUB_OFFLINE=1  # proof that nothing is fetched
started=$SECONDS
# an earlier demo's results; recordings, tiny models, and what other scripts made beside them stay
rm -rf $runs/{bcic_hemisphere,bcic_region,vi_text,vi_direct}{,_shuffled} $images/{bcic,vi_text,vi_direct,tables}
mkdir -p $runs
step() { echo "== $1 ($((SECONDS - started)) s)"; }

step "recordings and tiny models"
python prepare_demo.py --data_dir data/demo --pth_dir $pth
step "recordings → trial stores"
python prepare_data.py --skip_download --raw_dir $bcic/raw --lmdb_dir $bcic/processed_lmdb --overwrite
python prepare_data_vi.py --skip_download --raw_dir $vi/raw --lmdb_dir $vi/processed_lmdb --overwrite

step "pipeline 1, BCIC-IV-2a: EEG → text, hemisphere means"
train_bcic $runs/bcic_hemisphere --token_pooling hemisphere
step "pipeline 2, Visual Imagery: EEG → text"
train_vi $runs/vi_text
export OMP_NUM_THREADS=1
step "pipeline 3, Visual Imagery: EEG → CLIP space, with its shuffled-label control ($runs/*.log)"
train_mapper $runs/vi_direct_shuffled --shuffle_labels > $runs/vi_direct_shuffled.log 2>&1 & control=$!
train_mapper $runs/vi_direct
wait $control
step "the control of pipeline 1, and region means"
train_bcic $runs/bcic_region --token_pooling region > $runs/bcic_region.log 2>&1 & region=$!
train_bcic $runs/bcic_hemisphere_shuffled --token_pooling hemisphere --shuffle_labels
wait $region
step "the control of pipeline 2, and that of region means"
train_bcic $runs/bcic_region_shuffled --token_pooling region --shuffle_labels \
  > $runs/bcic_region_shuffled.log 2>&1 & region=$!
train_vi $runs/vi_text_shuffled --shuffle_labels
wait $region

step "decoding and pictures"
draw_bcic
draw_vi
draw_direct

echo
step "simulated recordings, people never trained on (A08, A09; S20 to S22); real EEG is far harder"
python evaluate.py $runs/bcic_hemisphere $runs/bcic_region $runs/vi_text $runs/vi_direct $images/bcic $images/vi_text \
  $images/vi_direct \
  --images --report --clip_model $pth/clip --output_dir $images/tables
for run in bcic vi_text vi_direct; do echo "pictures: $images/$run/summary_grid.png"; done
echo "page: $images/tables/report.html"
echo "took $((SECONDS - started)) s"

#!/usr/bin/env bash
# The embedded default: all three pipelines, end to end, on the CPU and without any model hub. Simulated recordings →
# stores → training with its shuffled-label control → decoding → pictures. `bash sh/demo.sh`; a second run reuses the
# recordings and tiny models. From the second training on two run at a time, one thread each; the second's words go to a log.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1  # proof that nothing is fetched
bcic=data/demo/BCICIV2a vi=data/demo/VisualImagery pth=pth/demo runs=pth_downtasks/demo images=outputs/demo
started=$SECONDS
rm -rf "$runs" "$images"  # an earlier demo's results; recordings and tiny models stay
mkdir -p $runs
step() { echo "== $1 ($((SECONDS - started)) s)"; }

text() { # dataset, store, name of the run, further flags
  python finetune_eeg_llm.py --downstream_dataset "$1" --datasets_dir "$2" --model_dir $runs/"$3" \
    --foundation_dir $pth/CSBrain.pth --llm $pth/TinyLlama-1.1B-Chat-v1.0 --warmup_epochs 3 \
    --batch_size 8 --gradient_accumulation_steps 1 --warmup_lr 2e-3 --lr 2e-3 --cuda -1 "${@:4}"
}
train_bcic() { text BCICIV2a $bcic/processed_lmdb "$1" --epochs 12 "${@:2}"; }
train_vi() { text VI $vi/processed_lmdb "$1" --epochs 8 "${@:2}"; }
train_mapper() { # name of the run, further flags
  python finetune_eeg_to_image.py --datasets_dir $vi/processed_lmdb --stimuli_dir $vi/stimuli --output_dir $runs/"$1" \
    --foundation_dir $pth/CSBrain.pth --clip_model $pth/clip --image_model $pth/stable-diffusion \
    --epochs 6 --warmup_epochs 4 --batch_size 16 --lr 1e-4 --joint_lr 1e-4 --cuda -1 "${@:2}"
}

step "recordings and tiny models"
python prepare_demo.py --data_dir data/demo --pth_dir $pth
step "recordings → trial stores"
python prepare_data.py --skip_download --raw_dir $bcic/raw --lmdb_dir $bcic/processed_lmdb --overwrite
python prepare_data_vi.py --skip_download --raw_dir $vi/raw --lmdb_dir $vi/processed_lmdb --overwrite

step "pipeline 1, BCIC-IV-2a: EEG → text, hemisphere means"
train_bcic bcic_hemisphere --token_pooling hemisphere
step "pipeline 2, Visual Imagery: EEG → text"
train_vi vi_text
export OMP_NUM_THREADS=1
step "pipeline 3, Visual Imagery: EEG → CLIP space, with its shuffled-label control ($runs/*.log)"
train_mapper vi_direct_shuffled --shuffle_labels > $runs/vi_direct_shuffled.log 2>&1 & control=$!
train_mapper vi_direct
wait $control
step "the control of pipeline 1, and region means"
train_bcic bcic_region --token_pooling region > $runs/bcic_region.log 2>&1 & region=$!
train_bcic bcic_hemisphere_shuffled --token_pooling hemisphere --shuffle_labels
wait $region
step "the control of pipeline 2, and that of region means"
train_bcic bcic_region_shuffled --token_pooling region --shuffle_labels > $runs/bcic_region_shuffled.log 2>&1 & region=$!
train_vi vi_text_shuffled --shuffle_labels
wait $region

step "decoding and pictures"
python generate.py --downstream_dataset BCICIV2a --datasets_dir $bcic/processed_lmdb \
  --foundation_dir $pth/CSBrain.pth --projection_dir $runs/bcic_hemisphere \
  --num_samples 16 --generate_images --image_model $pth/stable-diffusion --output_dir $images/bcic --cuda -1
python generate_vi.py --datasets_dir $vi/processed_lmdb --stimuli_dir $vi/stimuli \
  --foundation_dir $pth/CSBrain.pth --projection_path $runs/vi_text \
  --num_samples 20 --image_model $pth/amused --guidance_scale 2 --output_dir $images/vi_text --cuda -1
python generate_vi_eeg2img.py --datasets_dir $vi/processed_lmdb --stimuli_dir $vi/stimuli \
  --foundation_dir $pth/CSBrain.pth --mapper_path $runs/vi_direct \
  --num_samples 20 --image_model $pth/stable-diffusion --output_dir $images/vi_direct --cuda -1

echo
step "simulated recordings, people never trained on (A08, A09; S20 to S22); real EEG is far harder"
python evaluate.py $runs/bcic_hemisphere $runs/bcic_region $runs/vi_text $runs/vi_direct --output_dir $images/tables
for run in bcic vi_text vi_direct; do echo "pictures: $images/$run/summary_grid.png"; done
echo "took $((SECONDS - started)) s"

#!/usr/bin/env bash
# Real EEG on a laptop's CPU: no GPU, no model hub, no CSBrain.pth. `bash sh/real.sh`: about 4 minutes on 2 cores.
# BCIC-IV-2b (nine people, left against right hand) → store → EEG → text with an encoder trained from scratch and the
# demo's tiny language model, its shuffled-label control beside it → pictures. Each session is aligned by all of its
# trials, without their labels: docs/evaluation.md says what that means. Downloads about 250 MB once;
# EEG2IMAGE_2B_RAW=FOLDER takes the raw files B01T.mat … B09E.mat from there instead.
# Where B08 and B09 are not in the folder, B07 is left out for the test (--protocol loso:B07), and the run says so.
set -euo pipefail
raw=${EEG2IMAGE_2B_RAW:+$(cd "$EEG2IMAGE_2B_RAW" && pwd)} # before setup.sh changes the folder
source "$(dirname "$0")/setup.sh"
source sh/recipe.sh
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
store=data/BCICIV2b/processed_lmdb pth=pth/demo runs=pth_downtasks/real images=outputs/real
started=$SECONDS
rm -rf "$runs" "$images" # an earlier run's results
mkdir -p $runs
step() { echo "== $1 ($((SECONDS - started)) s)"; }

step "tiny language and image models"
python prepare_demo.py --datasets --pth_dir $pth
step "raw recordings → trial store"
given=()
if [ -n "$raw" ]; then given=(--skip_download --raw_dir "$raw"); fi
python prepare_data.py --downstream_dataset BCICIV2b ${given[@]+"${given[@]}"} --lmdb_dir $store --overwrite
protocol=published
if [ ! -e "${raw:-data/BCICIV2b/raw}/B08T.mat" ]; then
  protocol=loso:B07
  echo "notice: the published test people B08 and B09 are not there; B07 is the test person instead"
fi

# Its condition: all trials of the test session, without their labels, align it and set its answers straight
train() { # name of the run, further flags
  python finetune_eeg_llm.py --downstream_dataset BCICIV2b --datasets_dir $store --protocol $protocol \
    --model_dir $runs/"$1" --llm $pth/TinyLlama-1.1B-Chat-v1.0 "${text_recipe[@]}" $(condition session) "${@:2}"
}
step "EEG → text, with its shuffled-label control ($runs/*.log)"
train eegnet_shuffled --shuffle_labels > $runs/eegnet_shuffled.log 2>&1 & control=$!
train eegnet
wait $control

step "decoding and pictures"
python generate.py --downstream_dataset BCICIV2b --datasets_dir $store --protocol $protocol \
  --projection_dir $runs/eegnet \
  --num_samples 16 --generate_images --image_model $pth/stable-diffusion --output_dir $images --cuda -1

echo
step "real EEG, people never trained on ($protocol); used of them: all trials of the session, without labels"
python baseline.py --model csp_lda --datasets_dir $store --protocol $protocol "${classical_recipe[@]}" \
  $(condition session) --output_dir $runs/csp_lda > /dev/null
python evaluate.py $runs/eegnet $runs/csp_lda --output_dir $images/tables
echo "pictures: $images/summary_grid.png"
echo "took $((SECONDS - started)) s"

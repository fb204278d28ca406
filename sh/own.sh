#!/usr/bin/env bash
# Your own recordings, shown on a real person: a headband of four electrodes, houses and faces seen. `bash sh/own.sh`.
# CSV files → store → EEG → text, one run left out at a time → pictures → table and page.
# Downloads six runs (2 MB) and the pictures from NeuroTechX's eeg-notebooks once; EEG2IMAGE_MUSE_RAW=FOLDER takes them
# from there instead: the folder has N170/subject1_session1_data_….csv.gz, and the pictures in stimuli/face_house.
# docs/own_data.md goes through it.
set -euo pipefail
raw=${EEG2IMAGE_MUSE_RAW:+$(cd "$EEG2IMAGE_MUSE_RAW" && pwd)} # before setup.sh changes the folder
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
data=data/own pth=pth/demo runs=pth_downtasks/own images=outputs/own store=data/own/processed_lmdb
started=$SECONDS
rm -rf "$runs" "$images" # an earlier run's results
mkdir -p $runs $data
step() { echo "== $1 ($((SECONDS - started)) s)"; }

if [ -z "$raw" ]; then
  step "six runs and the pictures"
  python - $data/raw << 'PYTHON'
import sys
from pathlib import Path

from utils.download import download

# the recordings lie in the first version of eeg-notebooks, the pictures in today's, which is called EEG-ExPy
HOST, FOLDER = "https://raw.githubusercontent.com/NeuroTechX", Path(sys.argv[1])
RUNS = f"{HOST}/eeg-notebooks_v0.1/d74cbd2cdee526c5d35e36777bf7fda6e09a685b/data/visual/N170/subject1/session1"
PICTURES = f"{HOST}/EEG-ExPy/dddba0ec6010bd635e30067a664a3fd34d25fbca/eegnb/stimuli/visual/face_house"
for time in ("15.30.01", "15.32.50", "15.35.26", "15.40.17", "15.42.33", "15.45.08"):
    name = f"data_2017-09-13-{time}.csv"
    download([f"{RUNS}/{name}"], FOLDER / "N170" / f"subject1_session1_{name}")
faces = "Annie Blake Don Estelle Frank Janie Joan Jodi Joe Tim Tom Wallace".split()
names = [f"faces/{face}_{k}.jpg" for face in faces for k in range(1, 5)]
names += [f"houses/house{house}.{k}.jpg" for house in range(1, 13) for k in range(1, 5)]
for name in names:
    download([f"{PICTURES}/{name}"], FOLDER / "stimuli/face_house" / name)
PYTHON
  raw=$data/raw
fi
pictures=$raw/stimuli/face_house

step "what is in the files"
prepare() {
  python prepare_data_own.py "files:$raw/N170/{subject}_{session}_data_{run}.csv*" --name muse --seen \
    --events 1=house 2=face --window -0.1 0.8 --band 1 30 --reject 100 --stimuli_dir "$pictures" --lmdb_dir $store "$@"
}
prepare --show
step "CSV → trial store"
prepare --overwrite

step "a baseline, one run left out at a time"
for run in 1 2 3 4 5 6; do
  python baseline.py --model samples_lda --datasets_dir $store --protocol run:subject1/$run/all --window 0.2 0.6 \
    --output_dir $runs/lda-run$run --cuda -1 > $runs/lda-run$run.log 2>&1
done

step "EEG → text with a tiny chat model of the store's own sentences, with controls; an image model ($runs/*.log)"
text() { # run that is left out, folder, further flags
  python finetune_eeg_llm.py --datasets_dir $store --protocol run:subject1/"$1"/all --window 0.2 0.6 --encoder evoked \
    --llm tiny --model_dir $runs/"$2" --no_quantize --epochs 15 --warmup_epochs 15 --batch_size 32 \
    --gradient_accumulation_steps 1 --warmup_lr 1e-3 --weight_decay 0.5 --max_new_tokens 24 --cuda -1 "${@:3}" \
    > $runs/"$2".log 2>&1
}
control() { text "$1" text-run"$1"_shuffled --shuffle_labels; }
image_model() {
  python prepare_demo.py --datasets --models stable-diffusion --pth_dir $pth
  python train_demo_images.py --own_pictures pth/own/stable-diffusion --datasets_dir $store \
    --stimuli_dir "$pictures" --start_from $pth/stable-diffusion --autoencoder_steps 250 --unet_steps 500 \
    --sheet_dir $images
}
# on one core a tiny image model that learns to draw these pictures ($runs/images.log), then controls; on the other the
# runs, of which the first makes the chat model that all others find
beside() {
  image_model > $runs/images.log 2>&1
  until [ -e $runs/text-run1/results.json ]; do sleep 1; done
  for run in 1 2 3 4; do control $run; done
}
beside & beside=$!
for run in 1 2 3 4 5 6; do text $run text-run$run; done
for run in 5 6; do control $run; done
wait $beside

step "decoding and pictures of the run that was left out"
python generate.py --datasets_dir $store --projection_dir $runs/text-run6 --no_quantize --num_samples 16 \
  --max_new_tokens 24 \
  --generate_images --image_model pth/own/stable-diffusion --image_size 64 --guidance_scale 3 \
  --output_dir $images/pictures \
  --cuda -1

echo
step "one real person, six runs, each left out once"
python evaluate.py $runs/{text,lda}-run{1,2,3,4,5,6} --report --output_dir $images/tables
echo "pictures: $images/pictures/summary_grid.png, page: $images/tables/report.html"
echo "took $((SECONDS - started)) s"

#!/usr/bin/env bash
# THINGS-EEG2 with the published settings, a GPU: three encoders within each person and across people, with controls;
# windows; regions;
# for sub-08 a prior, a low level and captions, and pictures by SDXL-Turbo with and without each of them.
#   bash sh/things.sh            all of it; what is there is not made again, an interrupted run goes on
# Needs data/THINGS/processed_lmdb (prepare_data_things.py) and data/THINGS/images. The controls double the time.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
data=data/THINGS runs=pth_downtasks/things out=outputs/things
people=$(seq -f 'sub-%02g' 1 10)
train() { # folder of the run, further flags
  if [ -e "$runs/$1/results.json" ]; then return; fi
  python finetune_eeg_to_clip.py --datasets_dir $data/processed_lmdb --images_dir $data/images \
    --output_dir "$runs/$1" --resume "${@:2}"
}
for who in $people; do
  for encoder in atm nice ubp; do
    more=()
    if [ $encoder = ubp ]; then more=(--channels posterior); fi
    if [ $encoder = nice ]; then more=(--clip_model openai/clip-vit-large-patch14); fi
    for setting in within cross; do
      if [ $encoder$setting = atmcross ]; then more=(--batch_size 16); fi # as published
      train ${encoder}_${setting}_$who --encoder $encoder --setting $setting --subject $who "${more[@]}"
      train ${encoder}_${setting}_${who}_shuffled --encoder $encoder --setting $setting --subject $who "${more[@]}" \
        --shuffle_labels
    done
  done
done
for end in 0.1 0.2 0.3 0.4 0.5 0.6 0.8 1.0; do train window_$end --encoder atm --subject sub-08 --tmax $end; done
regions=(frontal central temporal parietal occipital)
for region in "${regions[@]}"; do
  others=(); for other in "${regions[@]}"; do if [ "$other" != "$region" ]; then others+=("$other"); fi; done
  train only_$region --encoder atm --subject sub-08 --channels "$region"
  train without_$region --encoder atm --subject sub-08 --channels "${others[@]}"
done
for parts in "attention tsconv" "attention mlp" "tsconv mlp"; do train "parts_${parts// /_}" --encoder atm \
  --subject sub-08 --atm_parts $parts; done
for encoder in atm nice ubp; do
  python retrieve.py $runs/${encoder}_within_sub-?? --datasets_dir $data/processed_lmdb --images_dir $data/images \
    --output_dir $out/$encoder
done
python retrieve.py $runs/window_* $runs/only_* $runs/without_* $runs/parts_* --datasets_dir $data/processed_lmdb \
  --images_dir $data/images --output_dir $out/ablations
# ---------------------------------------------------------------- pictures of one person's test images
who=sub-08 clip=(--datasets_dir $data/processed_lmdb --images_dir $data/images)
prior() { # folder of the run, encoder's run, further flags
  if [ -e "$runs/$1/results.json" ]; then return; fi
  python train_prior.py --model_dir $runs/$2 "${clip[@]}" --output_dir $runs/$1 --resume "${@:3}"
}
prior prior_$who atm_within_$who
prior prior_${who}_shuffled atm_within_${who}_shuffled
prior caption_$who atm_within_$who --what caption --captioner microsoft/git-large-coco
train low_level_$who --setting within --subject $who --encoder low_level --target vae_latent \
  --image_model stabilityai/sdxl-turbo
draw() { # folder of the pictures, encoder's run, further flags
  python generate_eeg2img.py --conditioning ip_adapter --model_dir $runs/$2 "${clip[@]}" \
    --image_model stabilityai/sdxl-turbo --num_samples 200 \
    --output_dir $out/pictures/$1 "${@:3}"
}
draw embedding atm_within_$who
draw prior atm_within_$who --prior_dir $runs/prior_$who --compare ceiling nearest
draw prior_shuffled atm_within_${who}_shuffled --prior_dir $runs/prior_${who}_shuffled
draw caption atm_within_$who --prior_dir $runs/prior_$who --caption_dir $runs/caption_$who --compare caption
draw low_level atm_within_$who --prior_dir $runs/prior_$who --low_level_dir $runs/low_level_$who
draw all atm_within_$who --prior_dir $runs/prior_$who --caption_dir $runs/caption_$who \
  --low_level_dir $runs/low_level_$who --samples 4 \
  --beside $out/pictures/{embedding,prior,caption,low_level}
python evaluate.py $runs/prior_$who $out/pictures/{embedding,prior,caption,low_level,all} --images \
  --output_dir $out/pictures/tables
python evaluate.py $runs/*_sub-?? $runs/parts_* --output_dir $out/tables --report

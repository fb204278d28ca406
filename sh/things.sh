#!/usr/bin/env bash
# THINGS-EEG2 with the published settings, a GPU: three encoders within each person and across people, with controls; windows; regions.
#   bash sh/things.sh            all of it; what is there is not made again, an interrupted run goes on
# Needs data/THINGS/processed_lmdb (prepare_data_things.py) and data/THINGS/images. The controls double the time.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
data=data/THINGS runs=pth_downtasks/things out=outputs/things
people=$(seq -f 'sub-%02g' 1 10)
train() { # folder of the run, further flags
  if [ -e "$runs/$1/results.json" ]; then return; fi
  python finetune_eeg_to_clip.py --datasets_dir $data/processed_lmdb --images_dir $data/images --output_dir "$runs/$1" --resume "${@:2}"
}
for who in $people; do
  for encoder in atm nice ubp; do
    more=()
    if [ $encoder = ubp ]; then more=(--channels posterior); fi
    if [ $encoder = nice ]; then more=(--clip_model openai/clip-vit-large-patch14); fi
    for setting in within cross; do
      if [ $encoder$setting = atmcross ]; then more=(--batch_size 16); fi # as published
      train ${encoder}_${setting}_$who --encoder $encoder --setting $setting --subject $who "${more[@]}"
      train ${encoder}_${setting}_${who}_shuffled --encoder $encoder --setting $setting --subject $who "${more[@]}" --shuffle_labels
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
for parts in "attention tsconv" "attention mlp" "tsconv mlp"; do train "parts_${parts// /_}" --encoder atm --subject sub-08 --atm_parts $parts; done
for encoder in atm nice ubp; do
  python retrieve.py $runs/${encoder}_within_sub-?? --datasets_dir $data/processed_lmdb --images_dir $data/images --output_dir $out/$encoder
done
python retrieve.py $runs/window_* $runs/only_* $runs/without_* $runs/parts_* --datasets_dir $data/processed_lmdb --images_dir $data/images --output_dir $out/ablations
python evaluate.py $runs/*_sub-?? $runs/parts_* --output_dir $out/tables --report

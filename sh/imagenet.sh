#!/usr/bin/env bash
# EEG-ImageNet with the published settings, a GPU: classes of every granularity by all models, within people and across
# them; pictures.
#   bash sh/imagenet.sh          all of it; what is there is not made again
# SECOND_DAY="S03 S07" bash sh/imagenet.sh    these people have a second day in the store (--same_person of
# prepare_data_imagenet.py)
# Needs data/EEGImageNet/processed_lmdb (prepare_data_imagenet.py), images and, for pictures, captions.jsonl (made here
# where it is not there).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
data=data/EEGImageNet runs=pth_downtasks/imagenet out=outputs/imagenet
people=$(seq -f 'S%02g' 0 15)
for kind in all coarse fine0 fine1 fine2 fine3 fine4; do
  for who in $people; do
    settings=(within cross) # beside each within what has no block drift: other people, and another day if there is one
    if [[ " ${SECOND_DAY:-} " == *" $who "* ]]; then settings+=(day); fi
    for setting in "${settings[@]}"; do
      for model in ridge knn forest svm; do
        folder=$runs/${model}_${setting}_${kind}_$who
        if [ ! -e $folder/results.json ]; then
          python baseline.py --model $model --downstream_dataset EEGImageNet --datasets_dir $data/processed_lmdb \
            --granularity $kind \
            --protocol $setting:$who --output_dir $folder
        fi
      done
      for encoder in mlp eegnet rgnn; do
        folder=$runs/${encoder}_${setting}_${kind}_$who
        if [ ! -e $folder/results.json ]; then
          python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet --datasets_dir $data/processed_lmdb \
            --images_dir $data/images \
            --target classes --encoder $encoder --granularity $kind --setting $setting --subject $who --passes 10 \
            --epochs 100 \
            --output_dir $folder --resume
        fi
      done
    done
  done
done
python evaluate.py $runs/*_all_S?? $runs/*_coarse_S?? $runs/*_fine?_S?? --output_dir $out/tables
if [ ! -e $data/captions.jsonl ]; then python caption_images.py --images_dir $data/images \
  --output $data/captions.jsonl; fi
for who in $people; do
  folder=$runs/text_states_$who
  if [ ! -e $folder/results.json ]; then
    python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet --datasets_dir $data/processed_lmdb \
      --images_dir $data/images \
      --target text_states --encoder de_mlp --captions $data/captions.jsonl --setting within --subject $who \
      --passes 25 --epochs 40 \
      --output_dir $folder --resume
  fi
  python generate_text_states.py --model_dir $folder --datasets_dir $data/processed_lmdb --images_dir $data/images \
    --captions $data/captions.jsonl \
    --num_samples 100 --output_dir $out/$who
done
python evaluate.py $out/S?? --images --output_dir $out/pictures

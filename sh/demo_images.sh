#!/usr/bin/env bash
# Seen images, embedded default: simulated THINGS-EEG2 and EEG-ImageNet in their raw layouts → stores → encoders with their controls →
# zero-shot retrieval, classes, text states → pictures. Offline, on the CPU. `bash sh/demo_images.sh`; two trainings run at a time, one
# thread each; their words go to a log beside their folders. A second run reuses the recordings and tiny models.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
data=data/demo pth=pth/demo runs=pth_downtasks/demo_images out=outputs/demo_images
things=$data/THINGS imagenet=$data/EEGImageNet started=$SECONDS
rm -rf $runs $out
mkdir -p $runs $out
step() { echo "== $1 ($((SECONDS - started)) s)"; }
pair() { # the commands on stdin, two at a time; the log of one that fails is shown
  local failed=0
  while read -r name command; do
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || failed=1; done
    (eval "$command" > "$runs/$name.log" 2>&1 || { tail -n 3 "$runs/$name.log" >&2; exit 1; }) &
  done
  while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || failed=1; done
  return $failed
}
clip() { # folder of the run, epochs, further flags
  python finetune_eeg_to_clip.py --datasets_dir $things/processed_lmdb --images_dir $things/images --clip_model $pth/clip \
    --batch_size 128 --average_train 4 --cuda -1 --output_dir "$runs/$1" --epochs "$2" "${@:3}"
}
classes() { # folder of the run, further flags
  python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet --datasets_dir $imagenet/processed_lmdb --images_dir $imagenet/images \
    --target classes --cuda -1 --output_dir "$runs/$1" "${@:2}"
}
svm() { # store, folder of the run, protocol
  python baseline.py --model svm --downstream_dataset EEGImageNet --datasets_dir "$1" --output_dir "$runs/$2" --protocol "$3" --cuda -1
}

step "images, recordings, tiny models"
python prepare_demo.py --data_dir $data --pth_dir $pth --datasets THINGS EEGImageNet --models stable-diffusion clip
step "recordings → stores; EEG-ImageNet also with drift alone"
python prepare_data_things.py --skip_download --raw_dir $things/raw --lmdb_dir $things/processed_lmdb --subjects 1 2 --overwrite
for kind in processed_lmdb:EEG-ImageNet_demo drift_lmdb:drift_only; do
  python prepare_data_imagenet.py --pth_path $imagenet/raw/${kind#*:}.pth --images_dir $imagenet/images \
    --class_names $imagenet/synset_map.txt --lmdb_dir $imagenet/${kind%:*} --overwrite
done

step "THINGS, images never seen in training: three encoders and their controls"
clip ubp 16 --setting joint --encoder ubp > $runs/ubp.log # alone: it embeds the images for all
pair << END
atm clip atm 12 --setting joint --encoder atm
nice clip nice 20 --setting joint --encoder nice
atm_shuffled clip atm_shuffled 12 --setting joint --encoder atm --shuffle_labels
nice_shuffled clip nice_shuffled 20 --setting joint --encoder nice --shuffle_labels
ubp_shuffled clip ubp_shuffled 16 --setting joint --encoder ubp --shuffle_labels
ubp_cross_1 clip ubp_cross_1 16 --setting cross --subject sub-01 --encoder ubp
ubp_cross_2 clip ubp_cross_2 16 --setting cross --subject sub-02 --encoder ubp
END
step "THINGS: windows that grow, regions in and out (ubp, which trains in seconds)"
pair << END
window_100 clip window_100 12 --setting joint --encoder ubp --tmax 0.1
window_200 clip window_200 12 --setting joint --encoder ubp --tmax 0.2
window_300 clip window_300 12 --setting joint --encoder ubp --tmax 0.3
window_500 clip window_500 12 --setting joint --encoder ubp --tmax 0.5
window_1000 clip window_1000 12 --setting joint --encoder ubp --tmax 1.0
occipital clip occipital 12 --setting joint --encoder ubp --channels occipital
frontal clip frontal 12 --setting joint --encoder ubp --channels frontal
no_occipital clip no_occipital 12 --setting joint --encoder ubp --channels frontal central temporal parietal
no_frontal clip no_frontal 12 --setting joint --encoder ubp --channels central temporal parietal occipital
END
step "retrieval: ranks, exact k-way scores, curves, sheets"
retrieve() { python retrieve.py "${@:2}" --datasets_dir $things/processed_lmdb --images_dir $things/images --cuda -1 --output_dir "$out/$1"; }
retrieve retrieval $runs/{atm,nice,ubp,ubp_cross_1,ubp_cross_2}
retrieve ablations $runs/{window_100,window_200,window_300,window_500,window_1000,occipital,frontal,no_occipital,no_frontal} > $runs/ablations.log
tail -n 1 $runs/ablations.log

step "EEG-ImageNet: classes; within a person, across people, and the same where drift alone tells the class"
pair << END
mlp classes mlp --setting joint --encoder mlp --optimizer adam --lr 3e-3 --epochs 30
mlp_shuffled classes mlp_shuffled --setting joint --encoder mlp --optimizer adam --lr 3e-3 --epochs 30 --shuffle_labels
rgnn classes rgnn --setting joint --encoder rgnn --lr 3e-3 --epochs 30
eegnet classes eegnet --setting joint --encoder eegnet --optimizer adam --lr 3e-3 --epochs 8
$(for who in S00 S01 S02 S03; do for kind in within cross; do
  echo "svm_${kind}_$who svm $imagenet/processed_lmdb svm_${kind}_$who $kind:$who"
  echo "drift_${kind}_$who svm $imagenet/drift_lmdb drift_${kind}_$who $kind:$who"
done; done)
END
step "EEG-ImageNet: text states of captions → pictures"
python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet --datasets_dir $imagenet/processed_lmdb --images_dir $imagenet/images \
  --setting joint --target text_states --captions $imagenet/captions.jsonl --image_model $pth/stable-diffusion --encoder mlp \
  --optimizer adam --lr 1e-3 --batch_size 40 --passes 10 --epochs 8 --cuda -1 --output_dir $runs/text_states
python generate_eeg2img.py --model_dir $runs/text_states --datasets_dir $imagenet/processed_lmdb --images_dir $imagenet/images \
  --captions $imagenet/captions.jsonl --image_model $pth/stable-diffusion --num_samples 20 --num_inference_steps 25 --image_size 256 \
  --output_dir $out/text_states --cuda -1

echo
step "simulated recordings; real EEG is far harder"
python evaluate.py $runs/{atm,nice,ubp,ubp_cross_1,ubp_cross_2} $runs/{mlp,rgnn,eegnet} $runs/svm_{within,cross}_S0? $runs/drift_{within,cross}_S0? \
  $runs/text_states $out/text_states --images --clip_model $pth/clip --output_dir $out/tables
for picture in retrieval/atm/top5.png retrieval/atm/repetitions.png ablations/windows_1.png ablations/regions_1.png text_states/summary_grid.png; do
  echo "picture: $out/$picture"
done
echo "took $((SECONDS - started)) s"

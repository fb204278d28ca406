#!/usr/bin/env bash
# Seen images, embedded default: simulated THINGS-EEG2 and EEG-ImageNet in their raw layouts → stores → encoders with
# their controls →
# zero-shot retrieval, classes, text states → prior, captions, low level, structure → pictures. Offline, on the CPU.
# `bash sh/demo_images.sh`; two trainings run at a time, one
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
  python finetune_eeg_to_clip.py --datasets_dir $things/processed_lmdb --images_dir $things/images \
    --clip_model $pth/clip \
    --batch_size 128 --average_train 4 --cuda -1 --output_dir "$runs/$1" --epochs "$2" "${@:3}"
}
classes() { # folder of the run, further flags
  python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet --datasets_dir $imagenet/processed_lmdb \
    --images_dir $imagenet/images \
    --target classes --cuda -1 --output_dir "$runs/$1" "${@:2}"
}
baseline() { # model, store, folder of the run, protocol, further flags
  python baseline.py --model "$1" --downstream_dataset EEGImageNet --datasets_dir "$2" --output_dir "$runs/$3" \
    --protocol "$4" --cuda -1 "${@:5}"
}

step "images, recordings, tiny models"
python prepare_demo.py --data_dir $data --pth_dir $pth --datasets THINGS EEGImageNet \
  --models stable-diffusion clip stable-diffusion-shapes ip-adapter controlnet captioner classifier clip-classes
step "recordings → stores; EEG-ImageNet also with drift alone"
python prepare_data_things.py --skip_download --raw_dir $things/raw --lmdb_dir $things/processed_lmdb --subjects 1 2 \
  --overwrite
store() { # folder of the store, further flags
  python prepare_data_imagenet.py --images_dir $imagenet/images --class_names $imagenet/synset_map.txt --overwrite \
    --lmdb_dir $imagenet/$1 "${@:2}"
}
store processed_lmdb --pth_path $imagenet/raw/EEG-ImageNet_{demo,day2}.pth --same_person 16=0 17=1 18=2 19=3
store drift_lmdb --pth_path $imagenet/raw/drift_only.pth

step "THINGS, images never seen in training: three encoders and their controls"
clip things_ubp 16 --setting joint --encoder ubp > $runs/things_ubp.log # alone: it embeds the images for all
pair << END
things_atm clip things_atm 12 --setting joint --encoder atm
things_nice clip things_nice 20 --setting joint --encoder nice
things_atm_shuffled clip things_atm_shuffled 12 --setting joint --encoder atm --shuffle_labels
things_nice_shuffled clip things_nice_shuffled 20 --setting joint --encoder nice --shuffle_labels
things_ubp_shuffled clip things_ubp_shuffled 16 --setting joint --encoder ubp --shuffle_labels
things_ubp_cross_1 clip things_ubp_cross_1 16 --setting cross --subject sub-01 --encoder ubp
things_ubp_cross_2 clip things_ubp_cross_2 16 --setting cross --subject sub-02 --encoder ubp
END
step "THINGS: windows that grow, regions in and out (ubp, which trains in seconds)"
pair << END
things_window_100 clip things_window_100 12 --setting joint --encoder ubp --tmax 0.1
things_window_200 clip things_window_200 12 --setting joint --encoder ubp --tmax 0.2
things_window_300 clip things_window_300 12 --setting joint --encoder ubp --tmax 0.3
things_window_500 clip things_window_500 12 --setting joint --encoder ubp --tmax 0.5
things_window_1000 clip things_window_1000 12 --setting joint --encoder ubp --tmax 1.0
things_occipital clip things_occipital 12 --setting joint --encoder ubp --channels occipital
things_frontal clip things_frontal 12 --setting joint --encoder ubp --channels frontal
things_no_occipital clip things_no_occipital 12 --setting joint --encoder ubp \
  --channels frontal central temporal parietal
things_no_frontal clip things_no_frontal 12 --setting joint --encoder ubp --channels central temporal parietal occipital
END
step "retrieval: ranks, exact k-way scores, curves, sheets"
retrieve() { python retrieve.py "${@:2}" --datasets_dir $things/processed_lmdb --images_dir $things/images --cuda -1 \
  --output_dir "$out/$1"; }
retrieve retrieval $runs/things_{atm,nice,ubp,ubp_cross_1,ubp_cross_2} --geometry plain whiten csls procrustes
parts=($runs/things_window_{100,200,300,500,1000} $runs/things_{occipital,frontal,no_occipital,no_frontal})
retrieve ablations "${parts[@]}" > $runs/ablations.log
tail -n 1 $runs/ablations.log

step "THINGS, from embedding to picture: priors, a caption adapter, low level, SGDM's VAE and encoder"
store_flags=(--datasets_dir $things/processed_lmdb --images_dir $things/images --cuda -1)
prior() { # which, encoder's run, folder of the run, further flags
  python train_prior.py --what "$1" --model_dir "$runs/$2" "${store_flags[@]}" --average_train 4 \
    --output_dir "$runs/$3" "${@:4}"
}
sgdm() {
  python train_structure.py --what vae "${store_flags[@]}" --widths 16 32 64 --hidden 256 --epochs 20 --lr 1e-3 \
    --batch_size 8 --map_share 1 --output_dir $runs/sgdm_vae
  local flags=(--setting joint --encoder sgdm --target structure --structure_vae $runs/sgdm_vae --channels posterior \
    --tmax 0.4 --batch_size 16 --lr 1e-3 --average_train 2)
  clip sgdm 8 "${flags[@]}"
  clip sgdm_shuffled 8 "${flags[@]}" --shuffle_labels
}
prior_flags="--standardise components --epochs 60 --validate_every 20 --batch_size 64 --warmup 50 --prior_guidance 2"
low_level="--setting joint --encoder low_level --target vae_latent --image_model $pth/stable-diffusion-shapes \
  --channels posterior --batch_size 30 --average_train 1"
pair << END
sgdm sgdm
prior prior prior things_atm prior $prior_flags
prior_shuffled prior prior things_atm_shuffled prior_shuffled $prior_flags
caption prior caption things_atm caption --captioner $pth/captioner --epochs 30 --validate_every 10 --lr 3e-3
low_level clip low_level 6 $low_level
low_level_shuffled clip low_level_shuffled 6 $low_level --shuffle_labels
END
tail -n 8 $runs/prior.log
for name in low_level low_level_shuffled; do echo "$name: $(grep "latents  *correlation" $runs/$name.log)"; done
echo "sgdm, then its control:"
grep "^  map.* correlation" $runs/sgdm.log | tail -n 4
step "THINGS: pictures of what was never seen in training, with and without each step"
draw() { # folder of the pictures, what is told, encoder's run, further flags
  python generate_eeg2img.py --conditioning $2 --model_dir "$runs/$3" "${store_flags[@]}" \
    --image_model $pth/stable-diffusion-shapes \
    --ip_adapter $pth/ip-adapter --controlnet $pth/controlnet --structure_vae $runs/sgdm_vae \
    --captioner $pth/captioner --prior_guidance 2 \
    --num_samples 60 --num_inference_steps 12 --guidance_scale 3 --image_size 64 --image_batch_size 10 \
    --output_dir "$out/pictures/$1" "${@:4}"
}
pair << END
draw_embedding draw embedding ip_adapter things_atm
draw_prior draw prior ip_adapter things_atm --prior_dir $runs/prior --compare ceiling nearest
draw_prior_shuffled draw prior_shuffled ip_adapter things_atm_shuffled --prior_dir $runs/prior_shuffled
draw_best_of_4 draw best_of_4 ip_adapter things_atm --prior_dir $runs/prior --samples 4
draw_caption draw caption ip_adapter things_atm --prior_dir $runs/prior --caption_dir $runs/caption --compare caption
draw_low_level draw low_level ip_adapter things_atm --prior_dir $runs/prior --low_level_dir $runs/low_level
draw_low_level_shuffled draw low_level_shuffled ip_adapter things_atm --prior_dir $runs/prior \
  --low_level_dir $runs/low_level_shuffled
draw_structure_shuffled draw structure_shuffled 'ip_adapter controlnet' things_atm --prior_dir $runs/prior \
  --structure_dir $runs/sgdm_shuffled
draw_structure draw structure 'ip_adapter controlnet' things_atm --prior_dir $runs/prior --structure_dir $runs/sgdm
draw_sgdm draw sgdm 'controlnet ip_adapter' sgdm
draw_sgdm_shuffled draw sgdm_shuffled 'controlnet ip_adapter' sgdm_shuffled
draw_sgdm_map draw sgdm_map controlnet sgdm
END
draw all 'ip_adapter controlnet' things_atm --prior_dir $runs/prior --caption_dir $runs/caption \
  --low_level_dir $runs/low_level \
  --structure_dir $runs/sgdm --beside $out/pictures/{embedding,prior,caption,low_level,structure} > $runs/draw_all.log

step "EEG-ImageNet: classes; within a person, across people and days, and the same where drift alone tells the class"
pair << END
imagenet_mlp classes imagenet_mlp --setting joint --encoder mlp --optimizer adam --lr 3e-3 --epochs 30
imagenet_mlp_shuffled classes imagenet_mlp_shuffled --setting joint --encoder mlp --optimizer adam --lr 3e-3 \
  --epochs 30 --shuffle_labels
imagenet_mlp_cross_S03 classes imagenet_mlp_cross_S03 --setting cross --subject S03 --encoder mlp --optimizer adam \
  --lr 3e-3 --epochs 30
imagenet_rgnn classes imagenet_rgnn --setting joint --encoder rgnn --lr 3e-3 --epochs 30
imagenet_eegnet classes imagenet_eegnet --setting joint --encoder eegnet --optimizer adam --lr 3e-3 --epochs 8
imagenet_mlp_coarse classes imagenet_mlp_coarse --setting joint --granularity coarse --encoder mlp --optimizer adam \
  --lr 3e-3 --epochs 30
imagenet_mlp_fine0 classes imagenet_mlp_fine0 --setting joint --granularity fine0 --encoder mlp --optimizer adam \
  --lr 3e-3 --epochs 30
imagenet_ridge baseline ridge $imagenet/processed_lmdb imagenet_ridge joint
imagenet_knn baseline knn $imagenet/processed_lmdb imagenet_knn joint
imagenet_forest baseline forest $imagenet/processed_lmdb imagenet_forest joint
$(for who in S00 S01 S02 S03; do for kind in within cross; do
  echo "imagenet_svm_${kind}_$who baseline svm $imagenet/processed_lmdb imagenet_svm_${kind}_$who $kind:$who"
  alone=imagenet_drift_alone_${kind}_$who
  echo "$alone baseline svm $imagenet/drift_lmdb $alone $kind:$who"
done; echo "imagenet_svm_day_$who baseline svm $imagenet/processed_lmdb imagenet_svm_day_$who day:$who"; done)
END
step "EEG-ImageNet: text states of captions → pictures"
python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet --datasets_dir $imagenet/processed_lmdb \
  --images_dir $imagenet/images \
  --setting joint --target text_states --captions $imagenet/captions.jsonl --image_model $pth/stable-diffusion \
  --encoder mlp \
  --optimizer adam --lr 1e-3 --batch_size 40 --passes 10 --epochs 8 --cuda -1 --output_dir $runs/imagenet_text_states
python generate_text_states.py --model_dir $runs/imagenet_text_states --datasets_dir $imagenet/processed_lmdb \
  --images_dir $imagenet/images \
  --captions $imagenet/captions.jsonl --image_model $pth/stable-diffusion --num_samples 20 --num_inference_steps 25 \
  --image_size 256 --clip_model $pth/clip-classes \
  --output_dir $out/text_states --cuda -1

echo
step "simulated recordings; real EEG is far harder"
tested=($runs/{prior,sgdm} $runs/things_{atm,nice,ubp,ubp_cross_1,ubp_cross_2} \
  $runs/imagenet_{ridge,knn,forest,mlp,mlp_cross_S03,rgnn,eegnet,mlp_coarse,mlp_fine0,text_states}
  $runs/imagenet_svm_{within,cross,day}_S0? $runs/imagenet_drift_alone_{within,cross}_S0?)
drawn=($out/pictures/{embedding,prior,best_of_4,caption,low_level,structure,all,sgdm,sgdm_map} $out/text_states)
pair << END
tables python evaluate.py ${tested[@]} --output_dir $out/tables
tables_of_pictures python evaluate.py ${drawn[@]} --images --clip_model $pth/clip --convnet $pth/classifier \
  --output_dir $out/tables_of_pictures
END
cat $runs/tables.log $runs/tables_of_pictures.log
for picture in retrieval/things_atm/{top5,repetitions}.png ablations/{windows,regions}_1.png pictures/all/steps.png \
  pictures/prior/summary_grid.png text_states/summary_grid.png; do
  echo "picture: $out/$picture"
done
echo "took $((SECONDS - started)) s"

#!/usr/bin/env bash
# SGDM on THINGS-EEG2, a GPU: its VAE, its EEG encoder, a ControlNet, pictures along decoded structure. Written from the
# system's
# description (no public code): docs/methods.md says what was settled. `bash sh/sgdm.sh [sub-08]`; what is there is not
# made again.
# CONTROLNET=lllyasviel/sd-controlnet-scribble bash sh/sgdm.sh     a published ControlNet in place of one that is
# trained here
set -euo pipefail
source "$(dirname "$0")/setup.sh"
who=${1:-sub-08} data=data/THINGS runs=pth_downtasks/sgdm out=outputs/sgdm \
  base=stable-diffusion-v1-5/stable-diffusion-v1-5
store=(--datasets_dir $data/processed_lmdb --images_dir $data/images)
run() { # folder of the run, script, further flags
  if [ -e "$runs/$1/results.json" ]; then return; fi
  python "$2" "${store[@]}" --output_dir "$runs/$1" --resume "${@:3}"
}
# 1. the VAE: pictures of the training concepts and their maps of edges; 100 epochs of AdamW 1e-4
run vae_$who train_structure.py --what vae --setting within --subject $who
# 2. the encoder: CLIP's embedding and the VAE's latent; and its control
for more in "" "--shuffle_labels"; do
  run sgdm_${who}${more:+_shuffled} finetune_eeg_to_clip.py --setting within --subject $who --encoder sgdm \
    --target structure --structure_vae $runs/vae_$who $more
done
# 3. the ControlNet, for Stable Diffusion 1.5, which stays as it is: 10 epochs of AdamW 1e-5
if [ -z "${CONTROLNET:-}" ]; then
  run controlnet_$who train_structure.py --what controlnet --setting within --subject $who --image_model $base
  best=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))['best_epoch'])" \
    $runs/controlnet_$who/results.json)
  CONTROLNET=$runs/controlnet_$who/controlnet_epoch$best
fi
# pictures: along the map alone, and with the IP-Adapter; the same from the control
for encoder in sgdm_$who sgdm_${who}_shuffled; do
  for told in "controlnet" "controlnet ip_adapter"; do
    folder=${told// /_}_${encoder#sgdm_}
    more=(); if [ "$told" = "controlnet ip_adapter" ] \
      && [ $encoder = sgdm_$who ]; then more=(--compare ceiling nearest); fi
    python generate_eeg2img.py --conditioning $told --model_dir $runs/$encoder "${store[@]}" \
      --structure_vae $runs/vae_$who --controlnet "$CONTROLNET" \
      --image_model $base --num_samples 200 --output_dir $out/$folder "${more[@]}"
  done
done
python evaluate.py $runs/sgdm_$who $out/controlnet_$who $out/controlnet_ip_adapter_$who --images \
  --output_dir $out/tables --report

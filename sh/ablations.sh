#!/usr/bin/env bash
# What each part of pipeline 3 is worth, as rows of one table, a curve over growing windows, and a map of brain regions:
#   bash sh/ablations.sh demo   simulated EEG, tiny models, CPU
# bash sh/ablations.sh full   Visual Imagery with the published weights, a GPU (data and runs of the README's commands)
# Says first what is to do and about how long it takes. What is there is not made again; after an interruption the same
# command goes on. Controls: `bash sh/ablations.sh demo --shuffle_labels`, before the command without it makes the
# table.
set -euo pipefail
case "${1:-}" in demo | full) ;; *) echo "error: say demo or full" >&2; exit 2 ;; esac
source "$(dirname "$0")/setup.sh"
source sh/demo_runs.sh
source sh/steps.sh
what=${1:-} control=${2:-}

regions=(frontal parietal temporal occipital central)
ablation() { # name, further flags of the mapper's training
  local folder=$ablated/$1${control:+_shuffled}
  step "$1${control:+ $control}" "$minutes" "$folder/results.json" train "$folder" --resume "${@:2}" $control
}
steps() {
  local region others end
  if [ "$what" = demo ]; then demo_data; fi
  ablation full
  ablation text_targets --image_targets text
  ablation no_qformer --mapper mlp
  ablation linear_probe --mapper linear
  ablation no_cls --lambda_cls 0 --select_by prototype
  ablation no_contrastive --lambda_contrastive 0
  ablation no_cos --lambda_cos 0
  ablation no_mse --lambda_mse 0
  ablation no_warmup --warmup_epochs 0
  ablation hemisphere_means --token_pooling hemisphere
  # which seconds and which electrodes tell the class: with the linear mapper, which trains in seconds; "linear_probe"
  # reads all
  for end in 1 2 3 4; do ablation "window_0_$end" --mapper linear --window 0 $end; done
  for region in "${regions[@]}"; do
    others=()
    for other in "${regions[@]}"; do if [ "$other" != "$region" ]; then others+=("$other"); fi; done
    ablation "without_$region" --mapper linear --regions "${others[@]}"
    ablation "only_$region" --mapper linear --regions "$region"
  done
  if [ -z "$control" ]; then
    newer=$(find "$ablated" -name decoded_test.jsonl -newer "$tables/results.md" 2>/dev/null || true)
    if [ -n "$newer" ]; then rm -f "$tables/results.md"; fi
    made_from_all "table, curve, map" 1 "$tables/results.md" evaluate
  fi
}
evaluate() { python evaluate.py $(ls -d "$ablated"/*/ | grep -v _shuffled/ | sed 's|/$||') --report \
  --output_dir "$tables"; }

case "$what" in
  demo)
    export HF_HUB_OFFLINE=1
    ablated=${runs}_ablations tables=$images/ablations minutes=1
    train() { train_mapper "$@"; } ;;
  full)
    ablated=pth_downtasks/ablations tables=outputs/ablations minutes=30
    train() { bash sh/finetune_eeg_to_image.sh --output_dir "$@"; } ;;
esac
do_steps

#!/usr/bin/env bash
# The tables of the README and of docs/results.md from raw data, one step after the other (those of seen images:
# sh/demo_images.sh):
#   bash sh/reproduce_tables.sh demo   simulated EEG, tiny models, CPU
#   bash sh/reproduce_tables.sh 2b     real EEG (BCIC-IV-2b), each person left out, tiny language model, CPU;
#                                      EEG2IMAGE_2B_RAW=FOLDER: where the .mat files are
#   bash sh/reproduce_tables.sh full   the published commands: BCIC-IV-2a and Visual Imagery, published weights, a GPU
# Says first what is to do and about how long it takes on 2 cores (full: on one GPU). What is there is not made again;
# after an interruption the same command goes on.
set -euo pipefail
case "${1:-}" in demo | 2b | full) ;; *) echo "error: say demo, 2b or full" >&2; exit 2 ;; esac
raw_2b=${EEG2IMAGE_2B_RAW:+$(cd "$EEG2IMAGE_2B_RAW" && pwd)} # before setup.sh changes the folder
source "$(dirname "$0")/setup.sh"
source sh/demo_runs.sh
source sh/steps.sh
source sh/recipe.sh

# made again where decoded trials or pictures are newer
tables() { # folder of tables, runs … and further flags
  local folder=$1 run
  shift
  for run in "$@"; do
    if [ -d "$run" ] && [ -e "$folder/results.md" ] \
      && newer_than "$folder/results.md" "$run" "${run}_shuffled"; then rm "$folder/results.md"; fi
  done
  made_from_all "tables, figures, page" 1 "$folder/results.md" python evaluate.py "$@" --report --output_dir "$folder"
}
true_class() { # minutes, folder of pictures, further flags
  local done=$2/true_class/true_class.json
  if [ -e "$done" ] && [ -n "$(find "$2" -maxdepth 1 -name 'generated_*.png' -newer "$done")" ]; then rm "$done"; fi
  step "pictures of the true classes, $2" "$1" "$done" python draw_true_class.py "${@:2}"
}
newer_than() { # file, folders that may be there
  local made=(-name 'decoded*.jsonl' -o -name 'generated_*.png' -o -name true_class.json)
  [ -n "$(find "${@:2}" \( "${made[@]}" \) -newer "$1" 2>/dev/null)" ]
}

# ------------------------------------------------------------ demo
demo_steps() {
  local name flags model all=()
  demo_data
  for flags in "" "--shuffle_labels"; do
    name=${flags:+_shuffled}
    step "1, hemisphere means $flags" 2 $runs/bcic_hemisphere$name/results.json train_bcic $runs/bcic_hemisphere$name \
      --token_pooling hemisphere --resume $flags
    step "1, region means $flags" 1 $runs/bcic_region$name/results.json train_bcic $runs/bcic_region$name \
      --token_pooling region --resume $flags
    step "2, VI text $flags" 2 $runs/vi_text$name/results.json train_vi $runs/vi_text$name --resume $flags
    step "3, VI mapper $flags" 2 $runs/vi_direct$name/results.json train_mapper $runs/vi_direct$name --resume $flags
    for model in best_constant bandpower_lda csp_lda tangent_space eegnet linear_probe mlp; do
      step "1, baseline $model $flags" 1 $runs/bcic_$model$name/results.json baseline BCICIV2a $bcic/processed_lmdb \
        $runs/bcic_$model$name $model --token_pooling hemisphere $flags
    done
    step "1, baseline linear_probe, region means $flags" 1 $runs/bcic_linear_probe_region$name/results.json baseline \
      BCICIV2a $bcic/processed_lmdb $runs/bcic_linear_probe_region$name linear_probe $flags
    for model in best_constant recording_only bandpower_lda csp_lda tangent_space eegnet linear_probe mlp; do
      step "2 and 3, baseline $model $flags" 1 $runs/vi_$model$name/results.json baseline VI $vi/processed_lmdb \
        $runs/vi_$model$name $model $flags
    done
  done
  step "1, pictures" 1 $images/bcic/summary_grid.png draw_bcic
  step "2, pictures" 1 $images/vi_text/summary_grid.png draw_vi
  step "3, pictures" 1 $images/vi_direct/summary_grid.png draw_direct
  for name in bcic vi_text vi_direct; do true_class 1 $images/$name --cuda -1; done
  for name in $runs/*/; do
    case $name in *_shuffled/) ;; *) all+=("${name%/}") ;; esac
  done
  tables $images/tables ${all[@]+"${all[@]}"} $images/bcic $images/vi_text $images/vi_direct --images \
    --clip_model $pth/clip
}
baseline() { # dataset, store, folder of the run, model, further flags
  python baseline.py --downstream_dataset "$1" --datasets_dir "$2" --output_dir "$3" --model "$4" \
    --epochs "$(epochs_of "$4")" --foundation_dir $pth/CSBrain.pth --cuda -1 "${@:5}"
}
epochs_of() { case $1 in eegnet | shallow) echo 20 ;; *) echo 60 ;; esac; } # networks on the signal take long on a CPU

# ------------------------------------------------------------ BCIC-IV-2b: real people
# Each person is left out once. METHOD_CONDITION/PERSON_seedN under $runs_2b: evaluate.py puts them together.
store_2b=data/BCICIV2b/processed_lmdb runs_2b=pth_downtasks/2b
left_out() { # folder, the file that says it is done, seed, flags of sweep.py …: all people, two at once
  mkdir -p "$1"
  python sweep.py --protocol loso:all --seeds "$3" --at_once 2 --no-table --output_dir "$1" "${@:4}" && touch "$2"
}
method() { # name, minutes, condition, seed, command …: one step for all people
  local folder=$runs_2b/$1_$3 done=$runs_2b/$1_$3/all_seed$4.txt
  step "$1, used of the test person: $3, seed $4" $2 $done left_out $folder $done $4 -- "${@:5}" $(condition $3) \
    --datasets_dir $store_2b
}
text_2b() { # condition, seed, end of the name, flags of sweep.py
  local folder=$runs_2b/text_$1 done=$runs_2b/text_$1/all_seed$2$3.txt
  step "EEG → text, used of the test person: $1, seed $2 ${*:4}" 7 $done left_out $folder $done $2 "${@:4}" -- \
    python finetune_eeg_llm.py --datasets_dir $store_2b --llm $pth/TinyLlama-1.1B-Chat-v1.0 "${text_recipe[@]}" \
    $(condition $1)
}
steps_2b() {
  local given=() used seed name all=()
  if [ -n "$raw_2b" ]; then given=(--skip_download --raw_dir "$raw_2b"); fi
  step "tiny language model" 1 $pth/clip/model.safetensors python prepare_demo.py --datasets --pth_dir $pth
  step "real recordings → store" 2 $store_2b/data.mdb python prepare_data.py --downstream_dataset BCICIV2b \
    ${given[@]+"${given[@]}"} --lmdb_dir $store_2b
  for used in $conditions; do
    for name in csp_lda tangent_space filterbank_tangent; do
      method $name 1 $used 0 python baseline.py --model $name "${classical_recipe[@]}"
    done
  done
  for seed in 0 1 2; do
    for used in $conditions; do
      text_2b $used $seed ""
      method eegnet 3 $used $seed python baseline.py --model eegnet --epochs 20 "${network_recipe[@]}"
    done
  done
  for used in $conditions; do text_2b $used 0 _shuffled --controls; done
  for used in $conditions; do
    method shallow 3 $used 0 python baseline.py --model shallow --epochs 8 "${network_recipe[@]}"
  done
  for name in text eegnet shallow csp_lda tangent_space filterbank_tangent; do
    for used in $conditions; do all+=("$runs_2b/${name}_$used"); done
  done
  tables outputs/2b/tables "${all[@]}"
}

# ------------------------------------------------------------ the published commands
steps_full() {
  local flags name model data run runs=pth_downtasks images=outputs all=()
  step "BCIC-IV-2a: download → store" 60 data/BCICIV2a/processed_lmdb/data.mdb python prepare_data.py
  step "Visual Imagery: download → store" 120 data/VisualImagery/processed_lmdb/data.mdb python prepare_data_vi.py
  for flags in "" "--shuffle_labels"; do
    name=${flags:+_shuffled}
    run=$runs/eeg_llm_bcic_new$name
    step "1 $flags" 120 $run/results.json bash sh/finetune_eeg_llm_bcic.sh --model_dir $run --resume $flags
    run=$runs/eeg_llm_bcic_hemisphere$name
    step "1, hemisphere means $flags" 120 $run/results.json bash sh/finetune_eeg_llm_bcic.sh \
      --token_pooling hemisphere --model_dir $run --resume $flags
    run=$runs/eeg_llm_vi$name
    step "2 $flags" 240 $run/results.json bash sh/finetune_eeg_llm_vi.sh --model_dir $run --resume $flags
    run=$runs/eeg_direct$name
    step "3 $flags" 30 $run/results.json bash sh/finetune_eeg_to_image.sh --output_dir $run --resume $flags
    for data in BCICIV2a VI; do
      for model in best_constant recording_only bandpower_lda csp_lda tangent_space eegnet shallow linear_probe mlp; do
        name=$runs/${data}_$model${flags:+_shuffled}
        step "$data, baseline $model $flags" 10 $name/results.json python baseline.py --downstream_dataset $data \
          --datasets_dir "data/${data/VI/VisualImagery}/processed_lmdb" --output_dir $name --model $model $flags
      done
    done
    name=$runs/BCICIV2a_linear_probe_hemisphere${flags:+_shuffled}
    step "BCICIV2a, baseline linear_probe, hemisphere means $flags" 10 $name/results.json python baseline.py \
      --downstream_dataset BCICIV2a \
      --datasets_dir data/BCICIV2a/processed_lmdb --output_dir $name --model linear_probe \
      --token_pooling hemisphere $flags
  done
  step "1, pictures" 5 $images/eeg2image/summary_grid.png bash sh/generate_images.sh bcic
  step "2, pictures" 5 $images/vi_images/summary_grid.png bash sh/generate_images.sh vi
  step "3, pictures" 5 $images/vi_eeg2img/summary_grid.png bash sh/generate_images.sh vi_direct
  for name in eeg2image vi_images vi_eeg2img; do true_class 5 $images/$name; done
  for name in $runs/eeg_llm_{bcic_new,bcic_hemisphere,vi} $runs/eeg_direct $runs/BCICIV2a_* $runs/VI_*; do
    case $name in *_shuffled | *\*) ;; *) all+=("$name") ;; esac
  done
  tables outputs/tables "${all[@]}" $images/eeg2image $images/vi_images $images/vi_eeg2img --images
}

case "${1:-}" in
  demo)
    export HF_HUB_OFFLINE=1
    steps() { demo_steps; } ;;
  2b)
    export HF_HUB_OFFLINE=1
    export OMP_NUM_THREADS=1 # two people at once
    steps() { steps_2b; } ;;
  full) steps() { steps_full; } ;;
esac
do_steps

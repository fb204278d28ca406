# Sourced by demo.sh, reproduce_tables.sh and ablations.sh: the demo's places, and how its runs are trained.
bcic=data/demo/BCICIV2a vi=data/demo/VisualImagery pth=pth/demo runs=pth_downtasks/demo images=outputs/demo
text() { # dataset, store, folder of the run, further flags
  python finetune_eeg_llm.py --downstream_dataset "$1" --datasets_dir "$2" --model_dir "$3" \
    --foundation_dir $pth/CSBrain.pth --llm $pth/TinyLlama-1.1B-Chat-v1.0 --warmup_epochs 3 \
    --batch_size 8 --gradient_accumulation_steps 1 --warmup_lr 2e-3 --lr 2e-3 --cuda -1 "${@:4}"
}
train_bcic() { text BCICIV2a $bcic/processed_lmdb "$1" --epochs 12 "${@:2}"; } # folder of the run, further flags
train_vi() { text VI $vi/processed_lmdb "$1" --epochs 8 "${@:2}"; }
train_mapper() {
  python finetune_eeg_to_image.py --datasets_dir $vi/processed_lmdb --stimuli_dir $vi/stimuli --output_dir "$1" \
    --foundation_dir $pth/CSBrain.pth --clip_model $pth/clip --image_model $pth/stable-diffusion \
    --epochs 6 --warmup_epochs 4 --batch_size 16 --lr 1e-4 --joint_lr 1e-4 --cuda -1 "${@:2}"
}
draw_bcic() {
  python generate.py --downstream_dataset BCICIV2a --datasets_dir $bcic/processed_lmdb \
    --foundation_dir $pth/CSBrain.pth --projection_dir $runs/bcic_hemisphere \
    --num_samples 16 --generate_images --image_model $pth/stable-diffusion --output_dir $images/bcic --cuda -1
}
draw_vi() {
  python generate_vi.py --datasets_dir $vi/processed_lmdb --stimuli_dir $vi/stimuli \
    --foundation_dir $pth/CSBrain.pth --projection_path $runs/vi_text \
    --num_samples 20 --image_model $pth/amused --guidance_scale 2 --output_dir $images/vi_text --cuda -1
}
draw_direct() {
  python generate_vi_eeg2img.py --datasets_dir $vi/processed_lmdb --stimuli_dir $vi/stimuli \
    --foundation_dir $pth/CSBrain.pth --mapper_path $runs/vi_direct \
    --num_samples 20 --image_model $pth/stable-diffusion --output_dir $images/vi_direct --cuda -1
}
demo_data() { # steps of sh/steps.sh
  local last=$pth/clip/model.safetensors # prepare_demo.py writes it last, unless the models are there already
  if [ ! -e $vi/stimuli/Object_chair.jpg ]; then last=$vi/stimuli/Object_chair.jpg; fi
  step "simulated recordings, tiny models" 2 $last python prepare_demo.py --data_dir data/demo --pth_dir $pth
  step "motor imagery: recordings → store" 1 $bcic/processed_lmdb/data.mdb \
    python prepare_data.py --skip_download --raw_dir $bcic/raw --lmdb_dir $bcic/processed_lmdb
  step "visual imagery: recordings → store" 1 $vi/processed_lmdb/data.mdb \
    python prepare_data_vi.py --skip_download --raw_dir $vi/raw --lmdb_dir $vi/processed_lmdb
}

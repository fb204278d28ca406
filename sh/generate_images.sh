#!/usr/bin/env bash
# The seed's generation commands, on each run's best epoch: `bash sh/generate_images.sh bcic|vi|vi_direct [flags]`, or
# all three that have been trained where none is named.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

bcic() {
  python generate.py --foundation_dir pth/CSBrain.pth --projection_dir pth_downtasks/eeg_llm_bcic_new \
    --datasets_dir data/BCICIV2a/processed_lmdb --downstream_dataset BCICIV2a --num_samples 20 --generate_images \
    --image_model stabilityai/stable-diffusion-2-1 --output_dir outputs/eeg2image "$@"
}
vi() {
  python generate_vi.py --datasets_dir data/VisualImagery/processed_lmdb --projection_path pth_downtasks/eeg_llm_vi \
    --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_images "$@"
}
vi_direct() {
  python generate_vi_eeg2img.py --datasets_dir data/VisualImagery/processed_lmdb \
    --mapper_path pth_downtasks/eeg_direct \
    --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_eeg2img \
    --num_inference_steps 25 --guidance_scale 7.5 "$@"
}
case "${1:-}" in
  bcic | vi | vi_direct) "$@" ;;
  "" | -*)
    if [ -e pth_downtasks/eeg_llm_bcic_new/results.json ]; then bcic "$@"; else echo "pipeline 1 is not trained"; fi
    if [ -e pth_downtasks/eeg_llm_vi/results.json ]; then vi "$@"; else echo "pipeline 2 is not trained"; fi
    if [ -e pth_downtasks/eeg_direct/results.json ]; then vi_direct "$@"; else echo "pipeline 3 is not trained"; fi ;;
  *) echo "error: $1 is none of bcic, vi, vi_direct" >&2; exit 2 ;;
esac

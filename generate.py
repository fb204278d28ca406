"""BCIC-IV-2a: EEG → text → image, with the checkpoints of finetune_eeg_llm.py.

    python generate.py --foundation_dir pth/CSBrain.pth \
        --projection_dir pth_downtasks/eeg_llm_bcic_new/projection_epoch6.pth \
        --lora_dir pth_downtasks/eeg_llm_bcic_new/lora_epoch6 \
        --datasets_dir data/BCICIV2a/processed_lmdb --downstream_dataset BCICIV2a \
        --num_samples 20 --generate_images --image_model stabilityai/stable-diffusion-2-1 --output_dir outputs/eeg2image

Stage `decode` writes decoded.jsonl and frees its models; stage `images` reads that file and draws what is missing.
The prompt comes from the decoded text and from nothing else; true labels name files and colour headers.
"""

import argparse

from datasets.description import DATASETS, load_dataset
from models.text_decoding import text_to_pictures
from utils.errors import run_script
from utils.flags import add_encoder_flags, add_image_flags, add_text_flags, add_trial_flags, check_at_least
from utils.paths import default


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--downstream_dataset", choices=list(DATASETS), default="BCICIV2a", help="which dataset's words and montage")
    add("--projection_dir", default=default("pth_downtasks/eeg_llm_bcic_new"),
        help="projection_epochN.pth, or a run's folder for its best epoch")  # fmt: skip
    add("--generate_images", action="store_true", help="draw; without it stage `all` ends with decoded.jsonl")
    add_trial_flags(parser, "data/BCICIV2a/processed_lmdb", "outputs/eeg2image")
    add_encoder_flags(parser)
    add_text_flags(parser)
    add_image_flags(parser, None, "data/VisualImagery/stimuli")
    args = parser.parse_args()
    check_at_least(parser, args, num_samples=1, batch_size=1, num_inference_steps=1, image_size=8)
    return args


def main() -> None:
    args = parse_args()
    description, Loader = load_dataset(args.downstream_dataset)
    args.image_model = args.image_model or description.image_model
    text_to_pictures(description, Loader, args.projection_dir, args)


if __name__ == "__main__":
    run_script(main)

"""Visual Imagery: EEG → text → class → image, with the checkpoints of finetune_eeg_llm.py --downstream_dataset VI.

    python generate_vi.py --datasets_dir data/VisualImagery/processed_lmdb \
        --projection_path pth_downtasks/eeg_llm_vi/projection_epoch5.pth \
        --lora_dir pth_downtasks/eeg_llm_vi/lora_epoch5 \
        --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_images

Stage `decode` writes decoded.jsonl and frees its models; stage `images` reads that file and draws what is missing,
with aMUSEd-512 in 12 steps at guidance 10. The prompt is that of the class that the decoded text names, or the text
itself where it names none; true labels name files and colour headers.
"""

import argparse

from datasets.visual_imagery_llm_dataset import DESCRIPTION, VisualImageryLLMDataset
from models.text_decoding import text_to_pictures
from utils.errors import run_script
from utils.flags import add_encoder_flags, add_image_flags, add_text_flags, add_trial_flags, check_at_least
from utils.paths import default


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projection_path", default=default("pth_downtasks/eeg_llm_vi"),
                        help="projection_epochN.pth, or a run's folder for its best epoch")  # fmt: skip
    add_trial_flags(parser, "data/VisualImagery/processed_lmdb", "outputs/vi_images")
    add_encoder_flags(parser)
    add_text_flags(parser)
    add_image_flags(parser, DESCRIPTION.image_model, "data/VisualImagery/stimuli")
    args = parser.parse_args()
    check_at_least(parser, args, num_samples=1, batch_size=1, num_inference_steps=1, image_size=8)
    return args


def main() -> None:
    args = parse_args()
    args.generate_images = True
    text_to_pictures(DESCRIPTION, VisualImageryLLMDataset, args.projection_path, args)


if __name__ == "__main__":
    run_script(main)

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
from pathlib import Path

from datasets.visual_imagery_llm_dataset import DESCRIPTION, VisualImageryLLMDataset
from models.pictures import draw_pictures
from models.text_decoding import decode_text, find_checkpoint
from utils.device import pick_device
from utils.drawing import stimulus_pictures
from utils.errors import run_script
from utils.flags import add_encoder_flags, add_image_flags, add_text_flags, add_trial_flags, check_at_least
from utils.paths import default
from utils.records import read_decoded, report_decoded


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
    device, output_dir = pick_device(args.cuda), Path(args.output_dir)
    if args.stage != "decode":  # asked before anything is decoded
        stimuli = stimulus_pictures(DESCRIPTION.stimuli, len(DESCRIPTION.classes), Path(args.stimuli_dir))

    # ------------------------------------------------------------ stage 1: EEG → decoded.jsonl
    if args.stage != "images":
        dataset = VisualImageryLLMDataset(args.datasets_dir, args.split)
        projection_file, lora_dir = find_checkpoint(Path(args.projection_path), args.lora_dir)
        chosen = dataset.spread(args.num_samples)
        rows = decode_text(DESCRIPTION, dataset, chosen, projection_file, lora_dir, args, device)
        record = {"arguments": vars(args), "store": dataset.store.fingerprint, "projection": str(projection_file)}
        report_decoded(rows, DESCRIPTION.chance, output_dir, record)

    # ------------------------------------------------------------ stage 2: decoded.jsonl → pictures
    if args.stage != "decode":
        draw_pictures(read_decoded(output_dir, DESCRIPTION.classes), stimuli, args, device)


if __name__ == "__main__":
    run_script(main)

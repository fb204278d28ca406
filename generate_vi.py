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

from datasets.description import load_description
from datasets.splits import PROTOCOLS, check_protocol
from models import SCHEDULERS
from stages.rows import TEXT_READOUTS
from utils import flags
from utils.paths import default
from utils.script import run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--projection_path", nargs="+", default=[default("pth_downtasks/eeg_llm_vi")],
        help="projection_epochN.pth, a run's folder for its best epoch, or OWNER/NAME on the hub; several runs: "
        "their mean")
    flags.add_store_flags(parser, "data/VisualImagery/processed_lmdb", PROTOCOLS, check_protocol)
    flags.add_generation_flags(parser, "outputs/vi_images")
    flags.add_trained_encoder_flags(parser)
    flags.add_text_flags(parser, TEXT_READOUTS)
    image_model = load_description("VI").image_model
    flags.add_image_flags(parser, image_model, "data/VisualImagery/stimuli", SCHEDULERS)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from models.image_generator import EEGImageGenerator, image_model_address, read_prompts
from stages.checkpoints import as_trained
from stages.decoding import DecodingSettings, decode_text, read_text_runs
from stages.pictures import PictureFolder, Stimuli, check_gpu_is_free, drawing_recipe
from stages.rows import read_rows
from stages.runs import check_output, remove_pieces, report_decoded
from utils.hub import fetch_nothing
from utils.processes import start_processes


def main(args: argparse.Namespace) -> None:
    description = load_description("VI")
    processes, output_dir = start_processes(args.cuda), Path(args.output_dir)
    draws = args.stage != "decode"
    check_output(output_dir)
    if args.stage != "images":
        runs = read_text_runs(args.projection_path, args.lora_dir)
        for path, checkpoint, _ in runs:
            description = as_trained(description, path, checkpoint)
        args.protocol = args.protocol or runs[0].content["protocol"]
    if draws:  # asked before anything is decoded
        stimuli = Stimuli(description.stimuli, len(description.classes), Path(args.stimuli_dir))
        image_model = image_model_address(args.image_model)
        fetch_nothing(image_model, "model_index.json", "--image_model")

    # ------------------------------------------------------------ stage 1: EEG → decoded.jsonl
    if args.stage != "images":
        rows, record = decode_text(runs, description, DecodingSettings.among(vars(args)), processes)
        record |= {"arguments": vars(args)} | description.own_record()
        if processes.first:
            report_decoded(rows, output_dir, record)
        processes.wait()

    # ------------------------------------------------------------ stage 2: decoded.jsonl → pictures
    if draws:
        rows = read_rows(output_dir / "decoded.jsonl", description.classes)
        how = args.num_inference_steps, args.guidance_scale, args.image_size, args.scheduler
        recipe = drawing_recipe(image_model, *how)
        pictures = PictureFolder(output_dir, rows, recipe, args.seed, processes=processes)
        if pictures.missing:
            device, memory = processes.device, args.max_memory_gb
            prompts, empty = read_prompts(image_model, [row.prompt for row in pictures.missing], device, memory)
            check_gpu_is_free(device, args.max_held_mib)
            generator = EEGImageGenerator(image_model, device, *how, empty, args.image_batch_size, memory)
            pictures.draw_missing(
                lambda rows, seeds: generator.draw([prompts[row.prompt] for row in rows], seeds), generator.at_once
            )
        processes.wait()
        if processes.first:
            pictures.finish(stimuli.of)
    processes.end()
    remove_pieces(output_dir)  # all is decoded and drawn


if __name__ == "__main__":
    go_on = "what is decoded and drawn is kept; the same command goes on behind it"
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], go_on)

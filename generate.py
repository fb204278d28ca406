"""Motor imagery: EEG → text → image, with the checkpoints of finetune_eeg_llm.py.

    python generate.py --foundation_dir pth/CSBrain.pth \
        --projection_dir pth_downtasks/eeg_llm_bcic_new/projection_epoch6.pth \
        --lora_dir pth_downtasks/eeg_llm_bcic_new/lora_epoch6 \
        --datasets_dir data/BCICIV2a/processed_lmdb --downstream_dataset BCICIV2a \
        --num_samples 20 --generate_images --image_model stabilityai/stable-diffusion-2-1 --output_dir outputs/eeg2image

Stage `decode` writes decoded.jsonl and frees its models; stage `images` reads that file and draws what is missing.
The prompt comes from the decoded text and from nothing else; true labels name files and colour headers.
"""

import argparse
from pathlib import Path

from datasets.description import one_of, with_words
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
    flags.add_dataset_flags(parser, one_of(with_words()), "which dataset's words and montage")
    add("--projection_dir", nargs="+", default=[default("pth_downtasks/eeg_llm_bcic_new")],
        help="projection_epochN.pth, a run's folder for its best epoch, or OWNER/NAME on the hub; several runs: "
        "their mean")
    add("--generate_images", action="store_true", help="draw; without it stage `all` ends with decoded.jsonl")
    flags.add_store_flags(parser, "data/BCICIV2a/processed_lmdb", PROTOCOLS, check_protocol)
    flags.add_generation_flags(parser, "outputs/eeg2image")
    flags.add_trained_encoder_flags(parser)
    flags.add_text_flags(parser, TEXT_READOUTS)
    flags.add_image_flags(parser, None, None, SCHEDULERS)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.store import description_of_store
from models.image_generator import EEGImageGenerator, image_model_address, read_prompts
from stages.checkpoints import as_trained
from stages.decoding import DecodingSettings, decode_text, read_text_runs
from stages.pictures import PictureFolder, Stimuli, check_gpu_is_free, drawing_recipe
from stages.rows import read_rows
from stages.runs import check_output, remove_pieces, report_decoded
from utils.hub import fetch_nothing
from utils.processes import start_processes


def main(args: argparse.Namespace) -> None:
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words, "BCICIV2a")
    args.downstream_dataset = description.name
    args.stimuli_dir = args.stimuli_dir or description.images_dir or default("data/VisualImagery/stimuli")
    processes, output_dir = start_processes(args.cuda), Path(args.output_dir)
    draws = args.stage == "images" or (args.stage == "all" and args.generate_images)
    check_output(output_dir)
    if args.stage != "images":
        runs = read_text_runs(args.projection_dir, args.lora_dir)
        for path, checkpoint, _ in runs:
            description = as_trained(description, path, checkpoint, other_words=bool(args.words))
        args.protocol = args.protocol or runs[0].content["protocol"]
    if draws:  # asked before anything is decoded
        stimuli = Stimuli(description.stimuli, len(description.classes), Path(args.stimuli_dir))
        image_model = image_model_address(args.image_model or description.image_model)
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

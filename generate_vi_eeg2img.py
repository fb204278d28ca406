"""EEG → CLIP space → image, with the checkpoints of finetune_eeg_to_image.py.

    python generate_vi_eeg2img.py --datasets_dir data/VisualImagery/processed_lmdb \
        --mapper_path pth_downtasks/eeg_direct/mapper_epoch17.pth \
        --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_eeg2img \
        --num_inference_steps 25 --guidance_scale 7.5

Stage `decode` writes decoded.jsonl (and embeddings.safetensors, where --conditioning needs them) and frees its models;
stage `images` reads them and draws what is missing. --conditioning class: the predicted class's prompt; embedding: the
mapper's own text states (and pooled vector, for aMUSEd); blend: something between. True labels name files and colour
headers.
"""

import argparse
from pathlib import Path

from datasets.description import one_of, with_words
from datasets.splits import PROTOCOLS, check_protocol
from models import SCHEDULERS
from stages.rows import MAPPER_READOUTS
from utils import flags
from utils.paths import default
from utils.script import run_script, start_script

CONDITIONINGS = ("class", "embedding", "blend")


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    flags.add_dataset_flags(parser, one_of(with_words()), "which dataset's words and stimuli")
    add("--mapper_path", nargs="+", default=[default("pth_downtasks/eeg_direct")],
        help="mapper_epochN.pth, a run's folder for its best epoch, or OWNER/NAME on the hub; several runs: "
        "their mean")
    add("--readout", choices=list(MAPPER_READOUTS), default="head", help="whose class is drawn")
    add("--conditioning", choices=CONDITIONINGS, default="class",
        help="class: the predicted class's prompt; embedding: the mapper's states; blend: between the two")
    add("--blend", type=float, default=0.5, help="share of the mapper's states in --conditioning blend, 0 to 1")
    flags.add_store_flags(parser, "data/VisualImagery/processed_lmdb", PROTOCOLS, check_protocol)
    flags.add_generation_flags(parser, "outputs/vi_eeg2img")
    flags.add_trained_encoder_flags(parser)
    flags.add_image_flags(parser, "runwayml/stable-diffusion-v1-5", None, SCHEDULERS)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    if not 0 <= args.blend <= 1:
        parser.error(f"--blend {args.blend:g} must lie between 0 and 1")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.store import description_of_store
from models.image_generator import EEGImageGenerator, image_model_address, read_prompts
from stages.checkpoints import as_trained
from stages.decoding import DecodingSettings, decode_embeddings, read_mapper_runs
from stages.embeddings import read_embeddings, write_embeddings
from stages.pictures import PictureFolder, Stimuli, check_gpu_is_free, drawing_recipe
from stages.rows import read_rows
from stages.runs import check_output, report_decoded
from utils.hub import fetch_nothing
from utils.processes import start_processes


def main(args: argparse.Namespace) -> None:
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words, "VI")
    args.downstream_dataset = description.name
    args.stimuli_dir = args.stimuli_dir or description.images_dir or default("data/VisualImagery/stimuli")
    processes, output_dir = start_processes(args.cuda), Path(args.output_dir)
    embeddings = output_dir / "embeddings.safetensors"
    draws = args.stage != "decode"
    check_output(output_dir)
    if args.stage != "images":
        runs = read_mapper_runs(args.mapper_path)
        for path, checkpoint, _ in runs:
            description = as_trained(description, path, checkpoint, other_words=bool(args.words))
        args.protocol = args.protocol or runs[0].content["protocol"]
    if draws:  # asked before anything is decoded
        stimuli = Stimuli(description.stimuli, len(description.classes), Path(args.stimuli_dir))
        image_model = image_model_address(args.image_model)
        fetch_nothing(image_model, "model_index.json", "--image_model")

    # ------------------------------------------------------------ stage 1: EEG → decoded.jsonl
    if args.stage != "images":
        rows, outputs, record = decode_embeddings(runs, description, DecodingSettings.among(vars(args)), processes)
        record |= {"arguments": vars(args)} | description.own_record()
        if processes.first:
            write_embeddings(embeddings, rows, outputs, runs[0].content["image_model"])
            report_decoded(rows, output_dir, record)
        processes.wait()

    # ------------------------------------------------------------ stage 2: decoded.jsonl → pictures
    if draws:
        rows = read_rows(output_dir / "decoded.jsonl", description.classes)
        how = args.num_inference_steps, args.guidance_scale, args.image_size, args.scheduler
        recipe = drawing_recipe(image_model, *how)
        states = {}
        if args.conditioning != "class":
            states = read_embeddings(embeddings, rows, image_model)
            recipe |= {"conditioning": args.conditioning, "blend": args.blend}
        of_row = (lambda row: {"embedding": row.embedding}) if states else None
        pictures = PictureFolder(output_dir, rows, recipe, args.seed, of_row, processes)
        if pictures.missing:
            device, memory = processes.device, args.max_memory_gb
            prompts, empty = read_prompts(image_model, [row.prompt for row in pictures.missing], device, memory)
            conditionings = {row.index: prompts[row.prompt] for row in pictures.missing}
            if states:
                share = args.blend if args.conditioning == "blend" else 1
                conditionings = {
                    index: of_class.blend(states[index], share) for index, of_class in conditionings.items()
                }
            check_gpu_is_free(device, args.max_held_mib)
            generator = EEGImageGenerator(image_model, device, *how, empty, args.image_batch_size, memory)
            pictures.draw_missing(
                lambda rows, seeds: generator.draw([conditionings[row.index] for row in rows], seeds), generator.at_once
            )
        processes.wait()
        if processes.first:
            pictures.finish(stimuli.of)
    processes.end()


if __name__ == "__main__":
    go_on = "what is decoded and drawn is kept; the same command goes on behind it"
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], go_on)

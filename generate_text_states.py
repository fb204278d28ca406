"""EEG of seen images → a text encoder's states → pictures, with a run of finetune_eeg_to_clip.py --target text_states.

    python generate_text_states.py --model_dir pth_downtasks/imagenet/S00 --captions data/EEGImageNet/captions.jsonl \
        --output_dir outputs/imagenet/S00

Stage `decode` writes decoded.jsonl (the class of the nearest mean state) and embeddings.safetensors, and frees its
models; stage `images` draws from the decoded states what is missing, with PNDM in 50 steps as published. With
--captions, each test image is drawn from its own caption too: the most that decoding text states can reach. The headers
say the nearest caption's class, and what the picture looks like: the class whose captions (else: whose name) a CLIP
puts nearest to it. Their colour judges the latter, which is the read-out "picture" of decoded.jsonl.
"""

import argparse
from pathlib import Path

from models import SCHEDULERS
from utils import flags
from utils.errors import UserError
from utils.paths import cache_folder, default
from utils.script import run_script, start_script

# flags of generate_eeg2img.py that had no part in text states, and still may be given
NO_PART = "samples beside ip_adapter ip_scale captioner strength prior_steps prior_guidance".split()


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--datasets_dir", default=default("data/EEGImageNet/processed_lmdb"), help="trial store")
    add("--model_dir", nargs="+", default=[default("pth_downtasks/clip")],
        help="run of finetune_eeg_to_clip.py, an encoder_epochN.pth in it, or OWNER/NAME on the hub; several runs: "
        "the mean of their states")
    add("--conditioning", nargs="+", choices=("text_states",), default=["text_states"],
        help="kept for commands of generate_eeg2img.py")
    flags.add_encoded_flags(add)
    add("--captions", help="captions.jsonl of caption_images.py: draw every test image from its own caption too")
    flags.add_generation_flags(parser, "outputs/text_states")
    photos, folder = "data/EEGImageNet/images", ("--images_dir", "--stimuli_dir")
    flags.add_image_flags(parser, "CompVis/stable-diffusion-v1-4", photos, SCHEDULERS, "pndm", folder)
    add("--clip_model",
        help="that says what pictures look like: local folder or hub address (default: openai/clip-vit-large-patch14, "
        "where it is at hand)")
    for name in NO_PART:
        add(f"--{name}", nargs="+", help=argparse.SUPPRESS)
    # fmt: on
    parser.set_defaults(num_inference_steps=50, guidance_scale=7.5)  # as published
    return parser.parse_args()


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch

from datasets.splits import print_caution
from models.eeg_encoders import STATES
from models.image_generator import EEGImageGenerator, image_model_address, read_prompts
from readers.captions import read_captions
from stages import retrieval
from stages.clip_runs import open_runs
from stages.embeddings import read_embeddings, write_embeddings
from stages.picture_class import images_of_classes, judge_pictures, read_images
from stages.pictures import (
    PictureFolder,
    Stimuli,
    check_gpu_is_free,
    drawing_recipe,
    fault_of,
    is_drawn,
    opened_whole,
    report_faults,
    save_with_recipe,
    together,
    true_class_picture,
)
from stages.rows import Row, read_rows, used_besides, write_rows
from stages.runs import check_output, report_decoded
from utils.device import free_gpu_memory
from utils.files import read_json, write_json
from utils.hub import fetch_nothing
from utils.processes import Processes, start_processes


def decode(args: argparse.Namespace, processes: Processes, output_dir: Path) -> None:
    """Stage 1: EEG → decoded.jsonl, embeddings.safetensors."""
    device = processes.device
    place, opened = " ".join(args.model_dir), (args.foundation_dir, args.cache_dir, device)
    runs = open_runs(args.model_dir, args.datasets_dir, args.split, *opened, args.num_samples)
    run, groups = runs[0]
    checkpoint = run.checkpoint
    if checkpoint["target"] != "text_states" or checkpoint.get("prototypes") is None:
        raise UserError(
            f"{place} was trained towards {checkpoint['target']}; pictures from states need --target text_states"
        )
    shared = device, args.batch_size, processes
    of_runs = [retrieval.embed(one.model, one.dataset, own, one.people, *shared) for one, own in runs]
    if not processes.first:
        return
    outputs = torch.stack(of_runs).mean(dim=0)  # (N, 77, D)
    p = retrieval.prototype_probabilities(outputs, checkpoint["prototypes"], checkpoint["centre"])
    rows = retrieval.class_rows(run.dataset, groups, p, "prototype")
    used_besides(rows, *(one.dataset.uses for one, _ in runs))
    none = torch.zeros(1, outputs.shape[-1])  # no pooled vector
    states = {row.index: (of_trial[None], none) for row, of_trial in zip(rows, outputs, strict=True)}
    write_embeddings(output_dir / "embeddings.safetensors", rows, states, checkpoint["image_model"])
    shuffled = ["encoder"] if checkpoint["shuffled"] else []
    arguments = vars(args) | {"protocol": checkpoint["protocol"], "samples": 1}
    arguments |= {"downstream_dataset": run.description.name, "shuffle_labels": bool(shuffled)}
    about = {"store": run.dataset.store.fingerprint, "model": place, "shuffled": shuffled}
    about["trained_on"] = images_of_classes(run)
    report_decoded(rows, output_dir, {"arguments": arguments} | about)
    if shuffled:
        print(
            "this is a shuffled-label control (encoder): its pictures show what is drawn where that has learned nothing"
        )
    print_caution(run.description, checkpoint["protocol"])


def draw(args: argparse.Namespace, rows: list[Row], image_model: str, processes: Processes, output_dir: Path) -> None:
    """Stage 2: pictures from decoded states; with --captions from the test images' own captions as well."""
    path = output_dir / "embeddings.safetensors"
    states = read_embeddings(path, rows, image_model)
    if any(conditioning.states.shape[1] != STATES[0] for conditioning in states.values()):
        raise UserError(f"{path} holds states of another number of places than {STATES[0]}; decode again")
    how = args.num_inference_steps, args.guidance_scale, args.image_size
    recipe = drawing_recipe(image_model, *how) | {"conditioning": "text_states", "scheduler": args.scheduler}
    pictures = PictureFolder(output_dir, rows, recipe, args.seed, lambda row: {"embedding": row.embedding}, processes)
    captions = read_captions(Path(args.captions), [row.image for row in rows]) if args.captions else {}
    of_caption = recipe | {"conditioning": "caption"}
    captioned = rows if captions else []
    recipes = {
        row.index: {"prompt": captions[row.image], "seed": args.seed + row.index} | of_caption for row in captioned
    }
    missing = [row for row in captioned if not is_drawn(true_class_picture(output_dir, row), recipes[row.index])]
    missing = processes.share(missing)
    if pictures.missing or missing:
        device, memory = processes.device, args.max_memory_gb
        prompts, empty = read_prompts(image_model, [captions[row.image] for row in missing], device, memory)
        check_gpu_is_free(device, args.max_held_mib)
        generator = EEGImageGenerator(image_model, device, *how, args.scheduler, empty, args.image_batch_size, memory)
        if empty.pooled is not None:
            raise UserError(
                f"--image_model {image_model} reads a pooled vector beside text states; Stable Diffusion 1.x does not"
            )
        pictures.draw_missing(
            lambda rows, seeds: generator.draw([states[row.index] for row in rows], seeds), generator.at_once
        )
        for some in together(missing, generator.at_once, "drawing from captions"):
            wanted, seeds = [prompts[captions[row.image]] for row in some], [args.seed + row.index for row in some]
            for row, picture in zip(some, generator.draw(wanted, seeds), strict=True):
                save_with_recipe(picture, recipes[row.index], true_class_picture(output_dir, row))
    processes.wait()
    if not processes.first:
        return
    if captions:
        about = {"told": "the stimulus's caption", "pictures": len(rows)}
        write_json(of_caption | about, output_dir / "true_class" / "true_class.json")
        paths = [true_class_picture(output_dir, row) for row in rows]
        report_faults({path.name: fault_of(opened_whole(path)) for path in paths})
    cache, record = cache_folder(args.cache_dir, Path(args.datasets_dir)), output_dir / "run.json"
    of_class, files = read_images(read_json(record), record, rows), [pictures.path("generated", row) for row in rows]
    looks = judge_pictures(rows, files, of_class, args.clip_model, args.captions, cache)
    write_rows(rows, output_dir / "decoded.jsonl")
    stimuli = Stimuli({}, 1 + max(row.true_label for row in rows), Path(args.images_dir))
    ceiling = (lambda row: true_class_picture(output_dir, row)) if captions else None
    pictures.finish(stimuli.of, ceiling, lambda row: looks.get(row.index))


def main(args: argparse.Namespace) -> None:
    processes, output_dir = start_processes(args.cuda), Path(args.output_dir)
    check_output(output_dir)
    if args.stage != "decode":  # asked before anything is decoded
        image_model = image_model_address(args.image_model)
        fetch_nothing(image_model, "model_index.json", "--image_model")
    if args.stage != "images":
        decode(args, processes, output_dir)
        free_gpu_memory(processes.device)
        processes.wait()
    if args.stage != "decode":
        draw(args, read_rows(output_dir / "decoded.jsonl"), image_model, processes, output_dir)
    processes.end()


if __name__ == "__main__":
    go_on = "what is decoded and drawn is kept; the same command goes on behind it"
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], go_on)

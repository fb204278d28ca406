"""EEG of seen images → pictures, with the checkpoints of finetune_eeg_to_clip.py.

    python generate_eeg2img.py --conditioning text_states --model_dir pth_downtasks/imagenet/de_mlp_S00 \
        --datasets_dir data/EEGImageNet/processed_lmdb --images_dir data/EEGImageNet/images --captions data/EEGImageNet/captions.jsonl \
        --num_samples 20 --output_dir outputs/imagenet/S00

Stage `decode` writes decoded.jsonl and embeddings.safetensors (the decoded text states of test trials, and no others) and frees its models;
stage `images` draws what is missing. With --captions each test image is drawn from its own caption as well, by the same model, steps and
seed: what text states could reach at most. Those pictures lie in true_class/, apart from the decoded ones; comparisons show both.
"""

import argparse
from pathlib import Path

from utils import flags
from utils.errors import UserError, run_script, start_script
from utils.paths import default

CONDITIONINGS = ("text_states",)


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--datasets_dir", default=default("data/EEGImageNet/processed_lmdb"), help="trial store")
    add("--model_dir", default=default("pth_downtasks/clip"),
        help="encoder_epochN.pth, or a run's folder for its best epoch")  # fmt: skip
    add("--conditioning", choices=CONDITIONINGS, default="text_states",
        help="what the image model is told: decoded text states")  # fmt: skip
    add("--captions", help="captions.jsonl of caption_images.py: draw every test image from its caption too")
    add("--cache_dir", help="folder of the token cache (default: token_cache beside --datasets_dir)")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    flags.add_generation_flags(parser, "outputs/eeg2img")
    flags.add_image_flags(
        parser,
        "CompVis/stable-diffusion-v1-4",
        "data/EEGImageNet/images",
        steps=50,
        guidance_scale=7.5,
        photos=["--images_dir"],
    )
    add("--scheduler", choices=("pndm", "dpm"), default="pndm", help="sampler: pndm as published, dpm: DPM-Solver++")
    args = parser.parse_args()
    flags.check_generation(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch

from datasets.repetitions import repetitions
from models.eeg_encoders import STATES
from models.image_generator import EEGImageGenerator, image_model_address
from stages import clip_runs, retrieval
from stages.captions import read_captions
from stages.embeddings import read_embeddings, write_embeddings
from stages.image_metrics import true_class_picture
from stages.pictures import PictureFolder, Stimuli, check_gpu_is_free, drawn_with, save_with_recipe
from stages.rows import read_rows
from stages.runs import check_output, report_decoded
from utils.device import pick_device
from utils.files import write_json
from utils.hub import fetch_nothing
from utils.progress import progress


def main(args: argparse.Namespace) -> None:
    device, output_dir = pick_device(args.cuda), Path(args.output_dir)
    embeddings = output_dir / "embeddings.safetensors"
    draws = args.stage != "decode"
    check_output(output_dir)
    if draws:  # asked before anything is decoded
        image_model = image_model_address(args.image_model)
        fetch_nothing(image_model, "model_index.json", "--image_model")

    # ------------------------------------------------------------ stage 1: EEG → decoded.jsonl
    if args.stage != "images":
        run = clip_runs.open_run(
            Path(args.model_dir), args.datasets_dir, args.split, args.foundation_dir, args.cache_dir, device
        )
        checkpoint = run.checkpoint
        if checkpoint["target"] != "text_states" or "prototypes" not in checkpoint:
            raise UserError(
                f"{args.model_dir} was trained towards {checkpoint['target']}; --conditioning text_states needs --target text_states"
            )
        if checkpoint["shuffled"]:
            raise UserError(f"{args.model_dir} is a shuffled-label control; its pictures would say nothing")
        groups = repetitions(run.dataset)
        if not groups:
            raise UserError(f"{args.datasets_dir} has no {args.split} trials under {checkpoint['protocol']}")
        chosen = [
            groups[k]
            for k in torch.linspace(0, len(groups) - 1, min(args.num_samples, len(groups))).round().int().tolist()
        ]
        outputs = retrieval.embed(run.model, run.dataset, chosen, run.people, device, args.batch_size)  # (N, 77, D)
        p = retrieval.prototype_probabilities(outputs, checkpoint["prototypes"], checkpoint["centre"])
        rows = retrieval.class_rows(run.dataset, chosen, p, "prototype")
        alone = {
            row.index: (states[None], torch.zeros(1, states.shape[-1]))
            for row, states in zip(rows, outputs, strict=True)
        }
        write_embeddings(embeddings, rows, alone, checkpoint["image_model"])
        of = {"downstream_dataset": run.description.name, "protocol": checkpoint["protocol"]}
        record = {"arguments": vars(args) | of, "store": run.dataset.store.fingerprint, "model": str(args.model_dir)}
        report_decoded(rows, output_dir, record)
        if caution := run.description.caution_for(checkpoint["protocol"]):
            print(caution)
        del run, checkpoint, outputs, alone  # the image stage has the GPU for itself

    # ------------------------------------------------------------ stage 2: decoded.jsonl → pictures
    if not draws:
        return
    rows = read_rows(output_dir / "decoded.jsonl")
    states = read_embeddings(embeddings, rows, image_model)
    if any(conditioning.states.shape[1] != STATES[0] for conditioning in states.values()):
        raise UserError(f"{embeddings} holds states of another number of places than {STATES[0]}; decode again")
    captions = read_captions(Path(args.captions), [row.image for row in rows]) if args.captions else {}
    recipe = {"model": image_model, "steps": args.num_inference_steps, "guidance": args.guidance_scale, "size": args.image_size,
              "conditioning": "text_states", "scheduler": args.scheduler}  # fmt: skip
    pictures = PictureFolder(output_dir, rows, recipe, args.seed, lambda row: {"embedding": row.embedding})
    told = {
        row.index: {"prompt": captions[row.image], "seed": args.seed + row.index} | recipe | {"conditioning": "caption"}
        for row in rows
        if captions
    }
    missing = [row for row in rows if captions and drawn_with(true_class_picture(output_dir, row)) != told[row.index]]
    if pictures.missing or missing:
        check_gpu_is_free(device, args.max_held_mib)
        generator = EEGImageGenerator(
            image_model, device, args.num_inference_steps, args.guidance_scale, args.image_size, args.scheduler
        )
        if generator.empty.pooled is not None:
            raise UserError(
                f"--image_model {image_model} reads a pooled vector beside text states; Stable Diffusion 1.x does not"
            )
        for row, seed in pictures.to_draw():
            pictures.keep(row, generator.generate(states[row.index], seed))
        for row in progress(missing, desc="drawing from captions", unit="image"):
            save_with_recipe(
                generator.generate(captions[row.image], args.seed + row.index),
                told[row.index],
                true_class_picture(output_dir, row),
            )
    if captions:
        about = {"told": "the stimulus's caption", "pictures": len(rows)}
        write_json(recipe | {"conditioning": "caption"} | about, output_dir / "true_class" / "true_class.json")
    stimuli = Stimuli({}, 1 + max(row.true_label for row in rows), Path(args.stimuli_dir))
    pictures.finish(stimuli.of, (lambda row: true_class_picture(output_dir, row)) if captions else None)


if __name__ == "__main__":
    run_script(
        lambda: main(args), [Path(args.output_dir) / ".lock"],
        "what is decoded and drawn is kept; the same command goes on behind it",
    )  # fmt: skip

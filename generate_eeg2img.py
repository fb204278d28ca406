"""EEG of seen images → pictures, with the checkpoints of finetune_eeg_to_clip.py, train_prior.py and
train_structure.py.

    python generate_eeg2img.py --conditioning ip_adapter --model_dir pth_downtasks/things/atm_sub-08 \
        --prior_dir pth_downtasks/things/prior_sub-08 --output_dir outputs/things/sub-08      # Stable Diffusion 1.5
    python generate_eeg2img.py … --image_model stabilityai/sdxl-turbo       # as published: 4 steps, no guidance
    python generate_eeg2img.py … --low_level_dir … --caption_dir … --samples 4 --compare ceiling nearest caption
    python generate_eeg2img.py --conditioning controlnet --model_dir pth_downtasks/things/sgdm_sub-08 --structure_vae …
    python generate_eeg2img.py --conditioning controlnet ip_adapter …                               # both together

Stage `decode` writes decoded.jsonl and embeddings.safetensors (of test trials, and no others) and frees its models;
stage `images` reads the prompts, frees the text encoders, and draws what is missing. Of several --samples that picture
stays whose CLIP embedding is nearest to the decoded one: what was seen has no say. --compare draws the same trials,
with the same seeds, from the true image's own embedding (the ceiling of this image model), from the nearest training
image's, and from the decoded caption alone; evaluate.py --images scores all.
--conditioning text_states is generate_text_states.py.
"""

import argparse
import runpy
import sys
from pathlib import Path

from models import SCHEDULERS, choose
from utils import flags
from utils.errors import UserError, loading
from utils.paths import ROOT, cache_folder, default
from utils.script import run_script, start_script

# flags of the first stage that the second one must be given alike
OF_DECODING = ("conditioning", "prior_dir", "low_level_dir", "caption_dir", "structure_dir", "samples")
CONDITIONINGS = ("ip_adapter", "controlnet", "text_states")
COMPARED = ("ceiling", "nearest", "caption")


# what --conditioning text_states read and wrote before it had a script of its own
OF_TEXT_STATES = {
    ("--output_dir",): "outputs/eeg2img",
    ("--datasets_dir",): "data/THINGS/processed_lmdb",
    ("--images_dir", "--stimuli_dir"): "data/THINGS/images",
}


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--datasets_dir", default=default("data/THINGS/processed_lmdb"), help="trial store")
    add("--model_dir", nargs="+", default=[default("pth_downtasks/clip")],
        help="run of finetune_eeg_to_clip.py, an encoder_epochN.pth in it, or OWNER/NAME on the hub; several runs: "
        "the mean of their embeddings")
    add("--conditioning", nargs="+", choices=CONDITIONINGS, default=["ip_adapter"],
        help="what is drawn from: a decoded image embedding, a decoded map of edges, or both; text_states: "
        "generate_text_states.py")
    flags.add_encoded_flags(add)
    steps = parser.add_argument_group("steps between EEG and picture").add_argument
    steps("--prior_dir", help="run of train_prior.py: the embedding goes through it")
    flags.add_prior_flags(steps)
    steps("--low_level_dir", help="run with --target vae_latent: drawing begins from its latents")
    steps("--strength", type=flags.share, default=0.85, help="share of the steps that are drawn from there")
    steps("--caption_dir",
        help="run of train_prior.py --what caption: the prompt is its caption (default: the empty prompt)")
    steps("--captioner", default="microsoft/git-large-coco", help="that reads its tokens: local folder or hub address")
    steps("--structure_dir", help="run with --target structure, for the map (default: --model_dir)")
    steps("--structure_vae", help="run of train_structure.py --what vae, that makes maps of decoded latents")
    flags.add_generation_flags(parser, "outputs/eeg2img")
    image_model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    folder = ("--images_dir", "--stimuli_dir")
    flags.add_image_flags(parser, image_model, "data/THINGS/images", SCHEDULERS, folder=folder)
    draw = parser.add_argument_group("drawing").add_argument
    draw("--ip_adapter", default="h94/IP-Adapter", help="folder in its layout, hub address, or a .safetensors file")
    draw("--ip_scale", type=flags.number, default=1.0, help="of the IP-Adapter's part")
    draw("--controlnet", default="lllyasviel/sd-controlnet-scribble", help="local folder or hub address")
    draw("--controlnet_scale", type=flags.number, default=0.5, help="of the ControlNet's part")
    draw("--samples", type=flags.at_least(1), default=1,
        help="pictures a trial, of which the one nearest to the decoded embedding stays")
    draw("--clip_model", help="that judges samples: local folder or hub address (default: the one trained with)")
    draw("--compare", nargs="*", choices=COMPARED, default=[], help="draw the same trials from these as well")
    draw("--beside", nargs="*", default=[],
        help="folders of other runs on the same trials, whose pictures stand in steps.png too")
    # fmt: on
    args = parser.parse_args()
    asked, several = set(args.conditioning), len(args.model_dir) > 1
    for wrong, words in (
        ("text_states" in asked, "--conditioning text_states goes alone"),
        (
            "controlnet" in asked and not args.structure_vae,
            "--conditioning controlnet needs --structure_vae, which makes maps of decoded latents",
        ),
        ("controlnet" not in asked and args.structure_dir, "--structure_dir goes with --conditioning controlnet"),
        (
            "ip_adapter" not in asked and (args.prior_dir or {"ceiling", "nearest"} & set(args.compare)),
            "--prior_dir and --compare ceiling, nearest need --conditioning ip_adapter",
        ),
        ("caption" in args.compare and not args.caption_dir, "--compare caption needs --caption_dir"),
        (
            several and (args.prior_dir or args.caption_dir),
            "--prior_dir and --caption_dir were trained on the embeddings of one run; name one --model_dir",
        ),
        (
            several and "controlnet" in asked and not args.structure_dir,
            "several --model_dir: name the one whose map is drawn by --structure_dir",
        ),
    ):
        if wrong:
            parser.error(words)
    return args


if __name__ == "__main__":
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--conditioning", nargs="+")
    if first.parse_known_args()[0].conditioning == ["text_states"]:  # commands of before it had a script of its own
        given = [part.partition("=")[0] for part in sys.argv[1:] if len(part) > 2 and part.startswith("--")]
        for names, usual in OF_TEXT_STATES.items():
            if not any(name.startswith(flag) for name in names for flag in given):  # also shortened
                sys.argv += [names[0], default(usual)]
        runpy.run_path(str(ROOT / "generate_text_states.py"), run_name="__main__")
        sys.exit()
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

from datasets.splits import print_caution
from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.guided_generator import Guidance, GuidedGenerator
from models.image_generator import image_model_address, read_prompts
from stages import TARGETS
from stages.clip_runs import open_runs
from stages.embeddings import read_guidance, write_guidance
from stages.guided_pictures import DECODED, choose_samples, columns_of_steps, file_of, wanted_pictures
from stages.pictures import (
    PictureFolder,
    Stimuli,
    check_gpu_is_free,
    drawing_recipe,
    is_drawn,
    marked,
    opened_whole,
    save_with_recipe,
    steps_sheet,
)
from stages.rows import Row, read_rows
from stages.runs import check_output, report_decoded
from stages.steps import Caption, Embedding, LowLevel, Map, Step, decode_embedding
from utils.device import free_gpu_memory
from utils.files import read_json
from utils.hub import fetch_nothing, model_identity
from utils.paths import written_whole
from utils.processes import Processes, start_processes
from utils.progress import progress


def steps_asked(args: argparse.Namespace) -> list[Step]:
    """The steps between EEG and picture, in their order."""
    prior = args.prior_dir, args.prior_steps, args.prior_guidance
    control = args.structure_vae, args.controlnet, args.controlnet_scale, args.image_model
    every = [
        ("ip_adapter" in args.conditioning, Embedding(args.ip_adapter, args.ip_scale, *prior, args.samples, args.seed)),
        (args.low_level_dir, LowLevel(args.low_level_dir, args.image_model, args.strength)),
        ("controlnet" in args.conditioning, Map(args.structure_dir or args.model_dir[0], *control)),
        (args.caption_dir, Caption(args.caption_dir, args.captioner)),
    ]
    return [step for asked, step in every if asked]


# ---------------------------------------------------------------- stage 1: EEG → decoded.jsonl, embeddings.safetensors


def decode(args: argparse.Namespace, steps: list[Step], processes: Processes, output_dir: Path) -> None:
    """Write decoded.jsonl and embeddings.safetensors, step by step."""
    place, opened = " ".join(args.model_dir), (args.foundation_dir, args.cache_dir, processes.device)
    runs = open_runs(args.model_dir, args.datasets_dir, args.split, *opened, args.num_samples)
    run = runs[0][0]
    checkpoint, cache = run.checkpoint, cache_folder(args.cache_dir, run.dataset.store.path)
    if not choose(TARGETS, checkpoint["target"]).in_clip_space:
        asked = " ".join(args.conditioning)
        raise UserError(
            f"{place} was trained towards {checkpoint['target']}; --conditioning {asked} needs --target image or "
            "structure"
        )
    how = dict(foundation=opened[0], cache_dir=opened[1], processes=processes, batch_size=args.batch_size)
    decoded, others = decode_embedding(runs, Path(args.images_dir), args.clip_model, cache, **how)
    kept = {"decoded": decoded.vectors} | {way: others[way] for way in others if way in args.compare}
    controls = {"encoder": checkpoint["shuffled"]}
    for step in steps:
        tensors, control = step.decode(decoded)
        kept, controls = kept | tensors, controls | control
    if controls["encoder"] and not all(controls.values()):
        real = ", ".join(step for step, shuffled in controls.items() if not shuffled)
        raise UserError(f"{place} is a shuffled-label control, but not its {real}: train these on shuffled labels too")
    if not processes.first:
        return
    write_guidance(output_dir / "embeddings.safetensors", decoded.rows, kept)

    # ------------------------------------------------------------ what the second stage, and evaluate.py, will ask
    shuffled = [step for step, of_labels in controls.items() if of_labels]
    identity = model_identity(image_model_address(args.image_model)) if args.low_level_dir else None
    record = {
        "arguments": vars(args)
        | {
            "downstream_dataset": run.description.name,
            "protocol": checkpoint["protocol"],
            "clip_model": args.clip_model or checkpoint["clip_model"],
            "shuffle_labels": bool(shuffled),
        },
        # which steps are controls
        "store": run.dataset.store.fingerprint,
        "model": place,
        "shuffled": shuffled,
        "candidates": run.images if "retrieval" in decoded.rows[0].readouts else [],
        "drawn_for": {"clip": checkpoint.get("clip"), "image_model": identity, "test_images": run.images},
    }
    report_decoded(decoded.rows, output_dir, record)
    if shuffled:
        named = ", ".join(shuffled)
        print(
            f"this is a shuffled-label control ({named}): its pictures show what is drawn where that has learned "
            "nothing"
        )
    print_caution(run.description, checkpoint["protocol"])


# ---------------------------------------------------------------- stage 2: decoded.jsonl → pictures


def draw(
    args: argparse.Namespace,
    steps: list[Step],
    rows: list[Row],
    image_model: str,
    clip_model: str,
    processes: Processes,
    output_dir: Path,
) -> None:
    """All samples, then the choice, then what they are compared with, and the sheets."""
    device, memory = processes.device, args.max_memory_gb
    kept = read_guidance(output_dir / "embeddings.safetensors", rows)
    place = {row.index: k for k, row in enumerate(rows)}
    needed = [*(name for step in steps for name in step.needs), *(way for way in COMPARED[:2] if way in args.compare)]
    if lacking := [name for name in needed if name not in kept]:
        path = output_dir / "embeddings.safetensors"
        raise UserError(f"{path} holds no {lacking[0]}; run --stage decode with the same flags")
    how = args.num_inference_steps, args.guidance_scale, args.image_size
    recipe = drawing_recipe(image_model, *how) | {
        "conditioning": " ".join(args.conditioning),
        "scheduler": args.scheduler,
    }
    recipe |= {"weights": model_identity(image_model)} | {k: v for step in steps for k, v in step.recipe().items()}

    # ------------------------------------------------------------ prompts, then the image model
    wanted = wanted_pictures(output_dir, rows, kept, recipe, args.seed, args.samples, args.compare)
    missing = [
        one
        for one in wanted
        if not is_drawn(one.file, one.recipe) or any(step.lacks(output_dir, one) for step in steps)
    ]
    missing = processes.share(missing)
    own = {row.index: {"embedding": row.embedding, "samples": args.samples} for row in rows}
    final = PictureFolder(output_dir, rows, recipe, args.seed, lambda row: own[row.index])
    if missing:
        prompts, empty = read_prompts(image_model, [one.prompt for one in missing], device, memory)
        check_gpu_is_free(device, args.max_held_mib)
    with progress(total=len(missing), desc="drawing", unit="image") as bar:
        for ways in ((DECODED,), ("ceiling", "nearest"), ("caption",)):
            todo = [one for one in missing if one.way in ways]
            if not todo:
                continue
            guiding = [step for step in steps if set(ways) & set(step.ways)]
            settings = {k: v for step in guiding for k, v in step.settings(kept).items()}
            settings |= {"batch_size": args.image_batch_size, "max_memory_gb": memory}
            generator = GuidedGenerator(image_model, device, empty, *how, args.scheduler, **settings)
            for start in range(0, len(todo), generator.at_once):
                batch = todo[start : start + generator.at_once]
                guidance = [
                    Guidance(
                        prompts[one.prompt],
                        **{k: v for step in guiding for k, v in step.guidance(kept, place[one.row.index], one).items()},
                    )
                    for one in batch
                ]
                drawn = generator.draw(guidance, [one.seed for one in batch])
                for one, picture in zip(batch, drawn, strict=True):
                    save_with_recipe(picture, one.recipe, one.file)
                    for step in guiding:
                        step.draw_own(output_dir, one, generator, kept, place[one.row.index])
                bar.update(len(batch))
            del generator
            free_gpu_memory(device)

    # ------------------------------------------------------------ the sample that stays; comparisons, sheets
    processes.wait()
    if not processes.first:
        return
    embed = CLIPImageTargetBuilder(clip_model, output_dir).load() if args.samples > 1 else None
    chosen = choose_samples(output_dir, rows, args.samples, kept["decoded"], embed)
    for row in rows:
        final.keep(row, opened_whole(file_of(output_dir, DECODED, row, chosen[row.index])))
    stimuli = Stimuli({}, 1 + max(row.true_label for row in rows), Path(args.images_dir))
    final.finish(stimuli.of, (lambda row: file_of(output_dir, "ceiling", row)) if "ceiling" in args.compare else None)
    columns = columns_of_steps(output_dir, rows, stimuli.of, Path(args.images_dir), args.beside, args.compare)
    for step in steps:
        if shown := step.column(output_dir, kept, 0, rows[0]):
            columns[shown[0]] = lambda row, step=step: step.column(output_dir, kept, place[row.index], row)[1]
    columns["drawn"] = lambda row: marked(opened_whole(final.path("generated", row)))
    with written_whole(output_dir / "steps.png") as unfinished:
        steps_sheet(rows[:: max(1, len(rows) // 10)][:10], columns).save(unfinished, format="PNG")
    print(output_dir / "steps.png")


def main(args: argparse.Namespace) -> None:
    processes, output_dir = start_processes(args.cuda), Path(args.output_dir)
    check_output(output_dir)
    steps = steps_asked(args)
    if args.stage != "decode":  # asked before anything is decoded
        image_model = image_model_address(args.image_model)
        fetch_nothing(image_model, "model_index.json", "--image_model")
        for step in steps:
            step.check_first()
        for place in args.beside:
            read_rows(Path(place) / "decoded.jsonl")
    if args.stage != "images":
        decode(args, steps, processes, output_dir)
        free_gpu_memory(processes.device)
        processes.wait()
    if args.stage == "decode":
        return processes.end()
    rows, record = read_rows(output_dir / "decoded.jsonl"), read_json(output_dir / "run.json")
    with loading(str(output_dir / "run.json"), "it is damaged; decode again"):
        before, asked = record["arguments"], record["drawn_for"]
        if other := [name for name in OF_DECODING if before[name] != getattr(args, name)]:
            was = f"--{other[0]} {before[other[0]]}"
            raise UserError(f"{output_dir} was decoded with {was}; draw with the same, or decode again")
        for step in steps:
            step.check_drawn_for(asked)
        if args.clip_model and asked["clip"] and asked["clip"] != model_identity(args.clip_model):
            raise UserError(f"--clip_model {args.clip_model} is another one than {output_dir} was decoded with")
        clip_model = args.clip_model or str(before["clip_model"])
    draw(args, steps, rows, image_model, clip_model, processes, output_dir)
    processes.end()


if __name__ == "__main__":
    go_on = "what is decoded and drawn is kept; the same command goes on behind it"
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], go_on)

"""EEG of seen images → pictures, with the checkpoints of finetune_eeg_to_clip.py, train_prior.py and train_structure.py.

    python generate_eeg2img.py --conditioning ip_adapter --model_dir pth_downtasks/things/atm_sub-08 \
        --prior_dir pth_downtasks/things/prior_sub-08 --output_dir outputs/things/sub-08             # Stable Diffusion 1.5: 4 GB
    python generate_eeg2img.py … --image_model stabilityai/sdxl-turbo                               # as published: 4 steps, no guidance
    python generate_eeg2img.py … --low_level_dir … --caption_dir … --samples 4 --compare ceiling nearest caption
    python generate_eeg2img.py --conditioning controlnet --model_dir pth_downtasks/things/sgdm_sub-08 --structure_vae … --output_dir …
    python generate_eeg2img.py --conditioning controlnet ip_adapter …                               # both together
    python generate_eeg2img.py --conditioning text_states --model_dir pth_downtasks/imagenet/de_mlp_S00 \
        --datasets_dir data/EEGImageNet/processed_lmdb --images_dir data/EEGImageNet/images --captions data/EEGImageNet/captions.jsonl …

Stage `decode` writes decoded.jsonl and embeddings.safetensors (of test trials, and no others) and frees its models; stage `images` reads
the prompts, frees the text encoders, and draws what is missing. Of several --samples that picture stays whose CLIP embedding is nearest
to the decoded one: what was seen has no say. --compare draws the same trials, with the same seeds, from the true image's own embedding
(the ceiling of this image model), from the nearest training image's, and from the decoded caption alone; evaluate.py --images scores all.
"""

import argparse
from pathlib import Path

from utils import flags
from utils.errors import UserError, loading, run_script, start_script
from utils.paths import default

# flags of the first stage that the second one must be given alike
OF_DECODING = ("conditioning", "prior_dir", "low_level_dir", "caption_dir", "structure_dir", "samples")
CONDITIONINGS = ("ip_adapter", "controlnet", "text_states")
COMPARED = ("ceiling", "nearest", "caption")


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--datasets_dir", default=default("data/THINGS/processed_lmdb"), help="trial store")
    add("--model_dir", default=default("pth_downtasks/clip"),
        help="run of finetune_eeg_to_clip.py, or an encoder_epochN.pth in it")  # fmt: skip
    add("--conditioning", nargs="+", choices=CONDITIONINGS, default=["ip_adapter"],
        help="what the image model is told: a decoded image embedding, a decoded map of edges (or both), or decoded text states")  # fmt: skip
    add("--cache_dir", help="folder of cached targets and tokens (default: token_cache beside --datasets_dir)")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    steps = parser.add_argument_group("steps between EEG and picture").add_argument
    steps("--prior_dir", help="run of train_prior.py: the embedding goes through it")
    steps("--prior_steps", type=int, default=50, help="of its sampling")
    steps("--prior_guidance", type=float, default=5.0, help="of its sampling")
    steps("--low_level_dir", help="run with --target vae_latent: drawing begins from its latents")
    steps("--strength", type=float, default=0.85, help="share of the steps that are drawn from there")
    steps(
        "--caption_dir",
        help="run of train_prior.py --what caption: the prompt is its caption (default: the empty prompt)",
    )
    steps("--captioner", default="microsoft/git-large-coco", help="that reads its tokens: local folder or hub address")
    steps("--structure_dir", help="run with --target structure, for the map (default: --model_dir)")
    steps("--structure_vae", help="run of train_structure.py --what vae, that makes maps of decoded latents")
    steps(
        "--captions",
        help="text_states: captions.jsonl of caption_images.py: draw every test image from its own caption too",
    )
    flags.add_generation_flags(parser, "outputs/eeg2img")
    flags.add_image_flags(parser, None, "data/THINGS/images", photos=["--images_dir"])
    draw = parser.add_argument_group("drawing").add_argument
    draw(
        "--scheduler",
        choices=("pndm", "dpm"),
        help="sampler: pndm as published for text states, dpm: DPM-Solver++, SDXL-Turbo its own (default: by --conditioning)",
    )
    draw("--ip_adapter", default="h94/IP-Adapter", help="folder in its layout, hub address, or a .safetensors file")
    draw("--ip_scale", type=float, default=1.0, help="of the IP-Adapter's part")
    draw("--controlnet", default="lllyasviel/sd-controlnet-scribble", help="local folder or hub address")
    draw("--controlnet_scale", type=float, default=0.5, help="of the ControlNet's part")
    draw(
        "--samples",
        type=int,
        default=1,
        help="pictures a trial, of which the one nearest to the decoded embedding stays",
    )
    draw("--clip_model", help="that judges samples: local folder or hub address (default: the one trained with)")
    draw("--draw_batch", type=int, default=1, help="pictures drawn at once")
    draw("--compare", nargs="*", choices=COMPARED, default=[], help="draw the same trials from these as well")
    draw(
        "--beside",
        nargs="*",
        default=[],
        help="folders of other runs on the same trials, whose pictures stand in steps.png too",
    )
    args = parser.parse_args()
    flags.check_generation(parser, args)
    flags.check_at_least(parser, args, samples=1, draw_batch=1)
    flags.check_prior_steps(parser, args)
    flags.check_numbers(parser, args, "prior_guidance", "ip_scale", "controlnet_scale")
    flags.check_share(parser, args, "strength")
    told = set(args.conditioning)
    if "text_states" in told:
        if len(told) > 1 or any(
            (args.prior_dir, args.low_level_dir, args.caption_dir, args.structure_dir, args.compare, args.samples > 1)
        ):
            parser.error("--conditioning text_states goes alone")
        args.num_inference_steps = args.num_inference_steps or 50
        args.guidance_scale = 7.5 if args.guidance_scale is None else args.guidance_scale
        args.scheduler = args.scheduler or "pndm"
        args.image_model = args.image_model or "CompVis/stable-diffusion-v1-4"
    elif args.captions:
        parser.error("--captions goes with --conditioning text_states; --caption_dir decodes captions")
    args.scheduler = args.scheduler or "dpm"
    args.image_model = args.image_model or "stable-diffusion-v1-5/stable-diffusion-v1-5"
    if "controlnet" in told and not args.structure_vae:
        parser.error("--conditioning controlnet needs --structure_vae, which makes maps of decoded latents")
    if "controlnet" not in told and args.structure_dir:
        parser.error("--structure_dir goes with --conditioning controlnet")
    if "ip_adapter" not in told and (args.prior_dir or {"ceiling", "nearest"} & set(args.compare)):
        parser.error("--prior_dir and --compare ceiling, nearest need --conditioning ip_adapter")
    if "caption" in args.compare and not args.caption_dir:
        parser.error("--compare caption needs --caption_dir")
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.nn import functional as F

from datasets.repetitions import Group, repetitions
from models.eeg_clip_mapper import CLIPImageTargetBuilder
from models.eeg_encoders import STATES
from models.guided_generator import Guidance, GuidedGenerator
from models.image_generator import EEGImageGenerator, image_model_address, read_prompts
from models.structure import map_picture
from stages import clip_runs, structure
from stages.captions import read_captions
from stages.clip_runs import ClipRun
from stages.embeddings import read_embeddings, read_guidance, write_guidance
from stages.guided_decoding import (
    decode_captions,
    decode_latents,
    decode_maps,
    decode_states,
    nearest_images,
    open_like,
    through_prior,
)
from stages.guided_pictures import DECODED, Wanted, choose_samples, columns_of_steps, file_of, is_drawn, wanted_pictures
from stages.image_metrics import true_class_picture
from stages.pictures import (
    PictureFolder,
    Stimuli,
    check_gpu_is_free,
    drawn_with,
    opened_whole,
    save_with_recipe,
    steps_sheet,
)
from stages.rows import Row, read_rows
from stages.runs import check_output, report_decoded
from utils.device import free_gpu_memory, pick_device
from utils.files import read_json, write_json
from utils.hub import fetch_nothing, model_identity
from utils.paths import cache_folder, written_whole
from utils.progress import progress

# ---------------------------------------------------------------- stage 1: EEG → decoded.jsonl, embeddings.safetensors


def decode_guidance(
    args, run: ClipRun, chosen: list[Group], device: torch.device, path: Path
) -> tuple[list[Row], dict[str, bool]]:
    """Rows, and what pictures are drawn from, as far as it is asked for, in `path`; of each step, whether it is a shuffled-label control."""
    decoded = clip_runs.clip_part(run, chosen, device, args.batch_size)  # (N, D)
    cache_dir = cache_folder(args.cache_dir, run.dataset.store.path)
    rows, others, length = nearest_images(run, chosen, decoded, Path(args.stimuli_dir), args.clip_model, cache_dir)
    kept, controls = {"decoded": decoded}, {"encoder": run.checkpoint["shuffled"]}

    def further(place: str, target: str) -> tuple[ClipRun, list[Group]]:
        return open_like(Path(place), run, chosen, target, args.foundation_dir, args.cache_dir, device)

    if "ip_adapter" in args.conditioning and args.prior_dir:
        kept["embedding"], controls["prior"] = through_prior(
            Path(args.prior_dir), run, decoded, rows, args.samples, args.seed, args.prior_steps, args.prior_guidance, device
        )  # fmt: skip
    elif "ip_adapter" in args.conditioning:  # at the length that embeddings of images have
        kept["embedding"] = (F.normalize(decoded, dim=-1) * length)[:, None]  # (N, 1, D)
    kept |= {way: others[way] for way in others if way in args.compare}
    if args.low_level_dir:
        low, groups = further(args.low_level_dir, "vae_latent")
        kept["latents"], controls["low level"] = decode_latents(low, groups, args.image_model, device, args.batch_size)
        del low
    if "controlnet" in args.conditioning:
        other, groups = further(args.structure_dir or args.model_dir, "structure")
        kept["map"], controls["map"] = decode_maps(
            other, groups, Path(args.structure_vae), args.controlnet, args.image_model, run.images, device, args.batch_size
        )  # fmt: skip
        del other
    if args.caption_dir:
        captions, controls["caption"] = decode_captions(Path(args.caption_dir), args.captioner, run, decoded, device)
        for row, caption in zip(rows, captions, strict=True):
            row.text = row.prompt = caption
    if controls["encoder"] and not all(controls.values()):
        real = ", ".join(step for step, shuffled in controls.items() if not shuffled)
        raise UserError(
            f"{args.model_dir} is a shuffled-label control, but not its {real}: train these on shuffled labels too"
        )
    write_guidance(path, rows, kept)
    return rows, controls


def decode(args, device: torch.device, output_dir: Path) -> None:
    """Write decoded.jsonl and embeddings.safetensors."""
    run = clip_runs.open_run(
        Path(args.model_dir), args.datasets_dir, args.split, args.foundation_dir, args.cache_dir, device
    )
    checkpoint, states = run.checkpoint, args.conditioning == ["text_states"]
    expected = (
        ("text_states",)
        if states
        else ("structure",)
        if args.conditioning == ["controlnet"] and not args.structure_dir
        else ("image", "structure")
    )
    if checkpoint["target"] not in expected or (states and "prototypes" not in checkpoint):
        raise UserError(
            f"{args.model_dir} was trained towards {checkpoint['target']}; --conditioning {' '.join(args.conditioning)} needs --target {' or '.join(expected)}"
        )
    groups = repetitions(run.dataset)
    if not groups:
        raise UserError(f"{args.datasets_dir} has no {args.split} trials under {checkpoint['protocol']}")
    places = torch.linspace(0, len(groups) - 1, min(args.num_samples, len(groups))).round().int().tolist()
    path = output_dir / "embeddings.safetensors"
    chosen = [groups[k] for k in places]
    if states:
        rows, controls = decode_states(run, chosen, device, args.batch_size, path), {"encoder": checkpoint["shuffled"]}
    else:
        rows, controls = decode_guidance(args, run, chosen, device, path)
    shuffled = [step for step, of_labels in controls.items() if of_labels]
    of = {
        "downstream_dataset": run.description.name,
        "protocol": checkpoint["protocol"],
        "clip_model": args.clip_model or checkpoint["clip_model"],
        "shuffle_labels": bool(shuffled),
    }
    image_model = model_identity(image_model_address(args.image_model)) if args.low_level_dir else None
    record = {
        "arguments": vars(args) | of,
        "store": run.dataset.store.fingerprint,
        "model": str(args.model_dir),
        "candidates": run.images if "retrieval" in rows[0].readouts else [],
        "shuffled": shuffled,  # which steps are controls
        "drawn_for": {"clip": checkpoint.get("clip"), "image_model": image_model, "test_images": run.images},
    }
    report_decoded(rows, output_dir, record)
    if shuffled:
        steps = ", ".join(shuffled)
        print(
            f"this is a shuffled-label control ({steps}): its pictures show what is drawn where that has learned nothing"
        )
    if caution := run.description.caution_for(checkpoint["protocol"]):
        print(caution)


# ---------------------------------------------------------------- stage 2: decoded.jsonl → pictures


def draw_states(args, rows: list[Row], image_model: str, device: torch.device, output_dir: Path) -> None:
    """Pictures from decoded text states; with --captions also from the test images' own captions."""
    states = read_embeddings(output_dir / "embeddings.safetensors", rows, image_model)
    if any(conditioning.states.shape[1] != STATES[0] for conditioning in states.values()):
        raise UserError(
            f"{output_dir / 'embeddings.safetensors'} holds states of another number of places than {STATES[0]}; decode again"
        )
    captions = read_captions(Path(args.captions), [row.image for row in rows]) if args.captions else {}
    recipe = {"model": image_model, "steps": args.num_inference_steps, "guidance": args.guidance_scale, "size": args.image_size,
              "conditioning": "text_states", "scheduler": args.scheduler}  # fmt: skip
    pictures = PictureFolder(output_dir, rows, recipe, args.seed, lambda row: {"embedding": row.embedding})
    told = {row.index: {"prompt": captions[row.image], "seed": args.seed + row.index} | recipe | {"conditioning": "caption"}
            for row in rows if captions}  # fmt: skip
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
            picture = generator.generate(captions[row.image], args.seed + row.index)
            save_with_recipe(picture, told[row.index], true_class_picture(output_dir, row))
    if captions:
        about = {"told": "the stimulus's caption", "pictures": len(rows)}
        write_json(recipe | {"conditioning": "caption"} | about, output_dir / "true_class" / "true_class.json")
    stimuli = Stimuli({}, 1 + max(row.true_label for row in rows), Path(args.stimuli_dir))
    pictures.finish(stimuli.of, (lambda row: true_class_picture(output_dir, row)) if captions else None)


def draw_guided(args, rows: list[Row], image_model: str, device: torch.device, output_dir: Path) -> None:
    """Pictures from decoded embeddings, latents and maps: all samples, then the choice, then what they are compared with."""
    kept = read_guidance(output_dir / "embeddings.safetensors", rows)
    place = {row.index: k for k, row in enumerate(rows)}

    def low_level_file(row: Row) -> Path:
        return output_dir / "low_level" / f"low_level_{row.index:04d}.png"

    def shows_low_level(one: Wanted) -> bool:
        return one.way == DECODED and one.sample == 0

    for name, needed in (("embedding", "ip_adapter" in args.conditioning), ("map", "controlnet" in args.conditioning),
                         ("latents", bool(args.low_level_dir)), *((name, name in args.compare) for name in COMPARED[:2])):  # fmt: skip
        if needed and name not in kept:
            raise UserError(
                f"{output_dir / 'embeddings.safetensors'} holds no {name}; run --stage decode with the same flags"
            )
    parts = {"weights": model_identity(image_model)}
    if "ip_adapter" in args.conditioning:
        parts |= {
            "ip_adapter": model_identity(args.ip_adapter),
            "ip_scale": args.ip_scale,
            "prior": bool(args.prior_dir),
        }
    if "controlnet" in args.conditioning:
        parts |= {"controlnet": model_identity(args.controlnet), "controlnet_scale": args.controlnet_scale}
    if args.low_level_dir:
        parts |= {"strength": args.strength}
    recipe = {"model": image_model, "steps": args.num_inference_steps, "guidance": args.guidance_scale, "size": args.image_size,
              "conditioning": " ".join(args.conditioning), "scheduler": args.scheduler} | parts  # fmt: skip

    # ------------------------------------------------------------ prompts, then the image model without its text encoders
    wanted = wanted_pictures(output_dir, rows, kept, recipe, args.seed, args.samples, args.compare)
    missing = [
        one
        for one in wanted
        if not is_drawn(one) or (args.low_level_dir and shows_low_level(one) and not low_level_file(one.row).is_file())
    ]
    final = PictureFolder(
        output_dir, rows, recipe, args.seed, lambda row: {"embedding": row.embedding, "samples": args.samples}
    )
    if missing:
        prompts, empty = read_prompts(image_model, sorted({one.prompt for one in wanted}), device)
        check_gpu_is_free(device, args.max_held_mib)

    def guidance(one: Wanted) -> Guidance:
        k, embedding, latents, structure_map = place[one.row.index], None, None, None
        if "ip_adapter" in args.conditioning and one.way != "caption":
            embedding = (
                kept["embedding"][k][one.sample % kept["embedding"].shape[1]]
                if one.way == DECODED
                else kept[one.way][k]
            )
        if one.way == DECODED:
            latents = kept["latents"][k] if args.low_level_dir else None
            structure_map = map_picture(kept["map"][k]) if "controlnet" in args.conditioning else None
        return Guidance(prompts[one.prompt], embedding, latents, structure_map)

    with progress(total=len(missing), desc="drawing", unit="image") as bar:
        for ways in ((DECODED,), ("ceiling", "nearest"), ("caption",)):
            todo = [one for one in missing if one.way in ways]
            if not todo:
                continue
            all_steps = ways == (DECODED,)
            generator = GuidedGenerator(
                image_model, device, empty, args.num_inference_steps, args.guidance_scale, args.image_size, args.scheduler,
                ip_adapter=args.ip_adapter if "ip_adapter" in args.conditioning and ways != ("caption",) else None,
                width=kept["decoded"].shape[1], ip_scale=args.ip_scale,
                controlnet=args.controlnet if "controlnet" in args.conditioning and all_steps else None,
                controlnet_scale=args.controlnet_scale, strength=args.strength if args.low_level_dir and all_steps else None,
            )  # fmt: skip
            for start in range(0, len(todo), args.draw_batch):
                batch = todo[start : start + args.draw_batch]
                drawn = generator.draw([guidance(one) for one in batch], [one.seed for one in batch])
                for one, picture in zip(batch, drawn, strict=True):
                    save_with_recipe(picture, one.recipe, one.file)
                    if args.low_level_dir and shows_low_level(one):
                        alone = generator.picture_of(kept["latents"][place[one.row.index]])
                        save_with_recipe(alone, one.recipe, low_level_file(one.row))
                bar.update(len(batch))
            del generator
            free_gpu_memory(device)

    # ------------------------------------------------------------ the sample that stays; comparisons, sheets
    embed = CLIPImageTargetBuilder(str(args.clip_model), output_dir).load() if args.samples > 1 else None
    chosen = choose_samples(output_dir, rows, args.samples, kept["decoded"], embed)
    for row in rows:
        final.keep(row, opened_whole(file_of(output_dir, DECODED, row, chosen[row.index])))
    stimuli = Stimuli({}, 1 + max(row.true_label for row in rows), Path(args.stimuli_dir))
    final.finish(stimuli.of, (lambda row: file_of(output_dir, "ceiling", row)) if "ceiling" in args.compare else None)
    columns = columns_of_steps(output_dir, rows, stimuli.of, Path(args.stimuli_dir), args.beside, args.compare)
    if args.low_level_dir:
        columns["decoded low level"] = lambda row: opened_whole(low_level_file(row))
    if "controlnet" in args.conditioning:
        columns["decoded map"] = lambda row: map_picture(kept["map"][place[row.index]])
    columns["drawn"] = lambda row: opened_whole(final.path("generated", row))
    with written_whole(output_dir / "steps.png") as unfinished:
        steps_sheet(rows[:: max(1, len(rows) // 10)][:10], columns).save(unfinished, format="PNG")
    print(output_dir / "steps.png")


def main(args: argparse.Namespace) -> None:
    device, output_dir = pick_device(args.cuda), Path(args.output_dir)
    check_output(output_dir)
    if args.stage != "decode":  # asked before anything is decoded
        image_model = image_model_address(args.image_model)
        fetch_nothing(image_model, "model_index.json", "--image_model")
        if "controlnet" in args.conditioning:
            fetch_nothing(args.controlnet, "config.json", "--controlnet")
        for place in args.beside:
            read_rows(Path(place) / "decoded.jsonl")
    if args.stage != "images":
        decode(args, device, output_dir)
        free_gpu_memory(device)
    if args.stage == "decode":
        return
    rows, record = read_rows(output_dir / "decoded.jsonl"), read_json(output_dir / "run.json")
    with loading(str(output_dir / "run.json"), "it is damaged; decode again"):
        before = {name: record["arguments"][name] for name in (*OF_DECODING, "clip_model")}
        for name in OF_DECODING:
            if before[name] != getattr(args, name):
                raise UserError(
                    f"{output_dir} was decoded with --{name} {before[name]}; draw with the same, or decode again"
                )
        asked = record["drawn_for"]
        if args.low_level_dir and asked["image_model"] != model_identity(image_model):
            raise UserError(
                f"{output_dir} holds latents of another image model than {args.image_model}; decode again for this one"
            )
        if "controlnet" in args.conditioning:
            structure.check_controlnet(args.controlnet, args.image_model, map(str, asked["test_images"]))
        if args.clip_model and asked["clip"] and asked["clip"] != model_identity(args.clip_model):
            raise UserError(f"--clip_model {args.clip_model} is another one than {output_dir} was decoded with")
    args.clip_model = args.clip_model or str(before["clip_model"])
    draw = draw_states if args.conditioning == ["text_states"] else draw_guided
    draw(args, rows, image_model, device, output_dir)


if __name__ == "__main__":
    run_script(
        lambda: main(args), [Path(args.output_dir) / ".lock"],
        "what is decoded and drawn is kept; the same command goes on behind it",
    )  # fmt: skip

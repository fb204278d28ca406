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
import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from datasets.description import DATASETS, load_dataset
from models.CSBrain import load_encoder
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model, load_lora
from models.features import TokenCache
from models.image_generator import EEGImageGenerator, image_model_address
from utils.checkpoints import fingerprint, read_checkpoint
from utils.device import PRECISIONS, free_gpu_memory, pick_device, pick_precision
from utils.drawing import PANEL, comparison, cue_arrow, summary_grid
from utils.errors import UserError, run_script
from utils.paths import default, written_whole
from utils.records import environment, read_jsonl, write_json, write_jsonl
from utils.statistics import READOUTS, score_readouts


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--downstream_dataset", choices=list(DATASETS), default="BCICIV2a", help="which dataset's words and montage")
    add("--datasets_dir", default=default("data/BCICIV2a/processed_lmdb"), help="trial store")
    add("--split", choices=("train", "val", "test"), default="test", help="whose trials are decoded")
    add("--num_samples", type=int, default=20, help="trials, spread evenly over the split")
    add("--stage", choices=("decode", "images", "all"), default="all",
        help="decode: EEG → decoded.jsonl; images: decoded.jsonl → pictures; all: one after the other")  # fmt: skip
    add("--generate_images", action="store_true", help="draw; without it stage `all` ends with decoded.jsonl")
    add("--output_dir", default=default("outputs/eeg2image"), help="folder for decoded.jsonl and pictures")
    add("--seed", type=int, default=0, help="trial i is drawn from seed + i")
    add("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    decoding = parser.add_argument_group("decoding").add_argument
    decoding("--use_pretrained_weights", action=argparse.BooleanOptionalAction, default=True,
             help="load --foundation_dir; --no-use_pretrained_weights: the random encoder of --encoder_seed")  # fmt: skip
    decoding("--encoder_seed", type=int, default=0, help="training's --seed, where it ran on a random encoder")
    decoding("--foundation_dir", default=default("pth/CSBrain.pth"), help="CSBrain's checkpoint")
    decoding("--allow_partial", action="store_true", help="load what fits of it, as in training")
    decoding("--projection_dir", default=default("pth_downtasks/eeg_llm_bcic_new"),
             help="projection_epochN.pth, or a run's folder for its best epoch")  # fmt: skip
    decoding("--lora_dir", help="adapter folder (default: lora_epochN beside the projection)")
    decoding("--llm", help="chat model: local folder or hub address (default: the one trained with)")
    decoding("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    decoding("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")
    decoding("--readout", choices=READOUTS, default="keyword",
             help="what is drawn: the generated text, or the likeliest class's sentence")  # fmt: skip
    decoding("--batch_size", type=int, default=16, help="trials decoded at once")
    decoding("--max_new_tokens", type=int, default=64, help="longest decoded text, in tokens")
    decoding("--cache_dir", help="folder of the token cache (default: token_cache beside --datasets_dir)")
    images = parser.add_argument_group("images").add_argument
    images("--image_model", help="local folder or hub address (default: the dataset's)")
    images("--image_steps", type=int, default=25, help="DPM-Solver++ steps")
    images("--guidance_scale", type=float, default=7.5, help="classifier-free guidance")
    images("--image_size", type=int, default=512, help="edge of a picture, pixels")
    images("--max_held_mib", type=float, default=256, help="GPU memory still held above which no image model is loaded")
    args = parser.parse_args()
    for name, least in (("num_samples", 1), ("batch_size", 1), ("image_steps", 1), ("image_size", 8)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be {least} or more")
    return args


# ---------------------------------------------------------------- stage 1: EEG → decoded.jsonl


def find_checkpoint(projection_dir: Path, lora_dir: str | None) -> tuple[Path, Path]:
    """The projection file and adapter folder; of a run's folder, the best epoch's."""
    if projection_dir.is_dir():
        results = projection_dir / "results.json"
        if not results.exists():
            raise UserError(f"{projection_dir} has no results.json; name a projection_epochN.pth with --projection_dir")
        projection_dir = projection_dir / f"projection_epoch{json.loads(results.read_text())['best_epoch']}.pth"
    if lora_dir:
        return projection_dir, Path(lora_dir)
    epoch = re.fullmatch(r"projection_epoch(\d+)\.pth", projection_dir.name)
    if not epoch:
        raise UserError(f"--lora_dir is needed: {projection_dir.name} does not tell the epoch")
    return projection_dir, projection_dir.with_name(f"lora_epoch{epoch[1]}")


def decode(args, device: torch.device) -> None:
    """Read the trials, decode them, write decoded.jsonl. Every model is local to this function and ends with it."""
    description, Loader = load_dataset(args.downstream_dataset)
    dataset = Loader(args.datasets_dir, args.split)
    if not len(dataset):
        raise UserError(f"{args.datasets_dir} has no {args.split} trials")
    n = min(args.num_samples, len(dataset))
    if n < args.num_samples:
        print(f"notice: --num_samples {args.num_samples}, but {args.split} has {n} trials; all are used")
    chosen = np.linspace(0, len(dataset) - 1, n).round().astype(int).tolist()

    # the checkpoint, and whether it belongs to this dataset and encoder
    projection_file, lora_dir = find_checkpoint(Path(args.projection_dir), args.lora_dir)
    checkpoint = read_checkpoint(projection_file)
    missing = {"dataset", "token_pooling", "encoder_fingerprint", "projection", "llm"} - set(checkpoint)
    if missing:
        raise UserError(f"{projection_file}: no checkpoint of finetune_eeg_llm.py (no {', '.join(sorted(missing))})")
    if checkpoint["dataset"] != description.name:
        raise UserError(f"{projection_file} was trained on {checkpoint['dataset']}; expected {description.name}")
    encoder = load_encoder(
        description.montage, args.foundation_dir if args.use_pretrained_weights else None, args.allow_partial,
        args.encoder_seed,
    )  # fmt: skip
    if fingerprint(encoder) != checkpoint["encoder_fingerprint"]:
        raise UserError(f"{projection_file} was trained on the features of another encoder than {args.foundation_dir}")
    if checkpoint.get("encoder") is not None:
        encoder.load_state_dict(checkpoint["encoder"])
    if not lora_dir.is_dir():
        raise UserError(f"{lora_dir}: no such LoRA folder; --lora_dir names the one saved beside the projection")
    cache = TokenCache(args.cache_dir, encoder, description.montage, checkpoint["token_pooling"])
    dataset.tokens = cache.tokens(dataset, device)

    # the language model with its adapter, and the projection
    precision = pick_precision(args.precision, device)
    language_model, tokenizer = load_language_model(
        args.llm or checkpoint["llm"], device, not args.no_quantize, PRECISIONS[precision]
    )
    language_model = add_lora(language_model)
    load_lora(language_model, lora_dir)
    projection = EEGProjection(language_model.get_input_embeddings().weight.shape[1])
    try:
        projection.load_state_dict(checkpoint["projection"])
    except RuntimeError:
        raise UserError(f"{projection_file} does not fit the language model's width; --llm names another") from None
    model = EEGLanguageModel(
        language_model, tokenizer, description.system_prompt, description.user_prompt, projection
    ).to(device).eval()  # fmt: skip

    rows = []
    for batch in tqdm(DataLoader(Subset(dataset, chosen), args.batch_size), desc="decoding", unit="batch"):
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            texts, scores = model.decode(batch["x"].to(device), description.canonical, args.max_new_tokens)
        for index, text, score in zip(batch["index"].tolist(), texts, scores.cpu(), strict=True):
            row = description.decoded_row(
                index, dataset.trials[index], dataset.labels[index], text, score.softmax(0).tolist()
            )
            rows.append(row | what_was_decoded(description, row, args.readout))
    output_dir = Path(args.output_dir)
    write_jsonl(rows, output_dir / "decoded.jsonl")
    write_json({"arguments": vars(args), "environment": environment(), "store": dataset.store.fingerprint,
                "projection": str(projection_file)}, output_dir / "run.json")  # fmt: skip

    print(f"\nwrote {output_dir / 'decoded.jsonl'}")
    for row in rows[:5]:
        print(f"  {row['subject']}{row['session']} {row['index']:5d}  true {row['true_name']}: {row['text']!r}")
    for readout, result in score_readouts(rows, description.chance).items():
        print(f"  {readout:10} {result}")


def what_was_decoded(description, row: dict, readout: str) -> dict:
    """Predicted label and image prompt, from the decoding alone: this function never sees a true label."""
    decoded = {key: row[key] for key in ("text", "likelihood_label")}
    text = decoded["text"] if readout == "keyword" else description.canonical[decoded["likelihood_label"]]
    label = description.keyword_label(text)
    return {
        "predicted_label": label,
        "predicted_name": description.class_name(label),
        "prompt": description.image_prompt(text),
    }


# ---------------------------------------------------------------- stage 2: decoded.jsonl → pictures


def draw(args, device: torch.device) -> None:
    """Draw the pictures that are missing, then the comparisons and the grid."""
    description = load_dataset(args.downstream_dataset)[0]
    output_dir = Path(args.output_dir)
    decoded = output_dir / "decoded.jsonl"
    if not decoded.exists():
        raise UserError(f"{decoded} is not there; run --stage decode first")
    rows = read_jsonl(decoded)
    name = image_model_address(args.image_model or description.image_model)

    wanted, missing = {}, []
    for row in rows:
        stem = f"{row['index']:04d}_true{row['true_label']}_pred{row['predicted_label']}.png"
        recipe = {"prompt": row["prompt"], "seed": args.seed + row["index"], "model": name, "steps": args.image_steps,
                  "guidance": args.guidance_scale, "size": args.image_size}  # fmt: skip
        wanted[stem] = (row, recipe)
        if drawn_with(output_dir / f"generated_{stem}") != recipe:
            missing.append(stem)
    if missing:
        held = free_gpu_memory(device)
        print(f"GPU memory still held before the image model loads: {held:.0f} MiB (limit {args.max_held_mib:.0f} MiB)"
              + ("" if device.type == "cuda" else "; no GPU in use"))  # fmt: skip
        if held > args.max_held_mib:
            raise UserError(
                f"{held:.0f} MiB of GPU memory are still held; the limit is --max_held_mib {args.max_held_mib:.0f}"
            )
        generator = EEGImageGenerator(name, device, args.image_steps, args.guidance_scale, args.image_size)
        if generator.drawn_size < args.image_size:
            print(f"{name} draws {generator.drawn_size} × {generator.drawn_size} pixels, enlarged to {args.image_size}")
        for stem in tqdm(missing, desc="drawing", unit="image"):
            recipe = wanted[stem][1]
            picture = generator.generate(recipe["prompt"], recipe["seed"])
            note = PngImagePlugin.PngInfo()
            note.add_text("recipe", json.dumps(recipe))
            with written_whole(output_dir / f"generated_{stem}") as unfinished:
                picture.save(unfinished, format="PNG", pnginfo=note)

    for stem, (row, _) in wanted.items():
        cue = description.stimuli.get(row["true_label"], "").removeprefix("arrow ")
        stimulus = cue_arrow(cue) if cue else Image.new("RGB", (PANEL, PANEL), "lightgrey")
        with Image.open(output_dir / f"generated_{stem}") as picture:
            pair = comparison(stimulus, picture, row["true_name"], row["predicted_name"])
        with written_whole(output_dir / f"comparison_{stem}") as unfinished:
            pair.save(unfinished, format="PNG")
    for stem in wanted:  # a trial decoded otherwise before leaves a picture under another name
        for kind in ("generated", "comparison"):
            for path in output_dir.glob(f"{kind}_{stem[:4]}_true*_pred*.png"):
                if path.name != f"{kind}_{stem}":
                    path.unlink()
    with written_whole(output_dir / "summary_grid.png") as unfinished:
        summary_grid([output_dir / f"comparison_{stem}" for stem in wanted]).save(unfinished, format="PNG")
    print(f"{len(missing)} images drawn, {len(rows) - len(missing)} were there; {output_dir / 'summary_grid.png'}")


def drawn_with(path: Path) -> dict | None:
    """What a picture says it was drawn with; None where there is no whole picture."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return json.loads(picture.info["recipe"])
    except (OSError, KeyError, ValueError):
        return None


def main() -> None:
    args = parse_args()
    device = pick_device(args.cuda)
    if args.stage != "images":
        decode(args, device)
    if args.stage == "images" or (args.stage == "all" and args.generate_images):
        draw(args, device)


if __name__ == "__main__":
    run_script(main)

"""Visual Imagery: EEG → CLIP space → image, with the checkpoints of finetune_eeg_to_image.py.

    python generate_vi_eeg2img.py --datasets_dir data/VisualImagery/processed_lmdb \
        --mapper_path pth_downtasks/eeg_direct/mapper_epoch17.pth \
        --stimuli_dir data/VisualImagery/stimuli --num_samples 20 --output_dir outputs/vi_eeg2img \
        --num_inference_steps 25 --guidance_scale 7.5

Stage `decode` writes decoded.jsonl (and embeddings.safetensors, where --conditioning needs them) and frees its models;
stage `images` reads them and draws what is missing. --conditioning class: the predicted class's prompt; embedding: the
mapper's own text states (and pooled vector, for aMUSEd); blend: something between. True labels name files and colour headers.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from datasets.visual_imagery_llm_dataset import DESCRIPTION, VisualImageryLLMDataset
from models.CSBrain import load_encoder
from models.eeg_clip_mapper import EEGCLIPMapper, mapper_readouts
from models.features import TokenCache
from models.image_generator import Conditioning
from models.pictures import draw_pictures
from utils.checkpoints import fingerprint, read_checkpoint
from utils.device import pick_device
from utils.drawing import stimulus_pictures
from utils.errors import UserError, run_script
from utils.flags import add_encoder_flags, add_image_flags, add_trial_flags, check_at_least
from utils.paths import default, written_whole
from utils.records import read_decoded, report_decoded

CONDITIONINGS = ("class", "embedding", "blend")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mapper_path", default=default("pth_downtasks/eeg_direct"),
        help="mapper_epochN.pth, or a run's folder for its best epoch")  # fmt: skip
    add("--conditioning", choices=CONDITIONINGS, default="class",
        help="class: the predicted class's prompt; embedding: the mapper's states; blend: between the two")  # fmt: skip
    add("--blend", type=float, default=0.5, help="share of the mapper's states in --conditioning blend, 0 to 1")
    add_trial_flags(parser, "data/VisualImagery/processed_lmdb", "outputs/vi_eeg2img")
    add_encoder_flags(parser)
    add_image_flags(parser, "runwayml/stable-diffusion-v1-5", "data/VisualImagery/stimuli")
    args = parser.parse_args()
    check_at_least(parser, args, num_samples=1, batch_size=1, num_inference_steps=1, image_size=8)
    if not 0 <= args.blend <= 1:
        parser.error(f"--blend {args.blend:g} must lie between 0 and 1")
    return args


# ---------------------------------------------------------------- stage 1: EEG → decoded.jsonl


def find_mapper(path: Path) -> Path:
    """The mapper's file; of a run's folder, the best epoch's."""
    if not path.is_dir():
        return path
    if not (path / "results.json").exists():
        raise UserError(f"{path} has no results.json; name a mapper_epochN.pth with --mapper_path")
    return path / f"mapper_epoch{json.loads((path / 'results.json').read_text())['best_epoch']}.pth"


def decode(args, device: torch.device) -> None:
    """Read the trials, map them, write decoded.jsonl. Every model is local to this function and ends with it."""
    dataset = VisualImageryLLMDataset(args.datasets_dir, args.split)
    chosen = dataset.spread(args.num_samples)

    # the checkpoint, and whether it belongs to these classes and this encoder
    mapper_file = find_mapper(Path(args.mapper_path))
    checkpoint = read_checkpoint(mapper_file)
    missing = {"classes", "token_pooling", "encoder_fingerprint", "settings", "mapper"} - set(checkpoint)
    if missing:
        raise UserError(f"{mapper_file}: no checkpoint of finetune_eeg_to_image.py (no {', '.join(sorted(missing))})")
    if tuple(checkpoint["classes"]) != DESCRIPTION.classes:
        raise UserError(
            f"{mapper_file} was trained on the classes {', '.join(checkpoint['classes'])}; expected {', '.join(DESCRIPTION.classes)}"
        )
    encoder = load_encoder(
        DESCRIPTION.montage, args.foundation_dir if args.use_pretrained_weights else None, args.allow_partial,
        args.encoder_seed,
    )  # fmt: skip
    if fingerprint(encoder) != checkpoint["encoder_fingerprint"]:
        raise UserError(f"{mapper_file} was trained on the features of another encoder than {args.foundation_dir}")
    if checkpoint["encoder"] is not None:
        encoder.load_state_dict(checkpoint["encoder"])
    cache = TokenCache(args.cache_dir, encoder, DESCRIPTION.montage, checkpoint["token_pooling"])
    dataset.tokens = cache.tokens(dataset, device)
    if dataset.tokens.shape[1] != checkpoint["settings"]["n_tokens"]:
        raise UserError(
            f"{mapper_file} was trained on {checkpoint['settings']['n_tokens']} tokens a trial; {args.datasets_dir} gives "
            f"{dataset.tokens.shape[1]}: its window has another length"
        )

    mapper = EEGCLIPMapper(**checkpoint["settings"])
    mapper.load_state_dict(checkpoint["mapper"])
    mapper.to(device).eval()
    prototypes = checkpoint["prototypes"].to(device)
    rows = []
    for batch in tqdm(DataLoader(Subset(dataset, chosen), args.batch_size), desc="decoding", unit="batch"):
        with torch.no_grad():
            outputs = mapper(batch["x"].to(device))
        for index, readouts in zip(batch["index"].tolist(), mapper_readouts(outputs, prototypes), strict=True):
            label = readouts["head_label"]
            rows.append(dataset.truth(index) | readouts | {
                "text": DESCRIPTION.canonical[label], "predicted_label": label,
                "predicted_name": DESCRIPTION.classes[label], "prompt": DESCRIPTION.image_prompts[label],
            })  # fmt: skip
    output_dir = Path(args.output_dir)
    if args.conditioning != "class":
        with torch.no_grad():  # one trial at a time: rounding differs with the batch, and no picture may
            alone = [mapper(dataset[index]["x"][None].to(device)) for index in chosen]
        with written_whole(output_dir / "embeddings.safetensors") as unfinished:
            unfinished.write_bytes(save({
                "index": torch.tensor(chosen),
                "states": torch.cat([states.cpu() for states, _, _ in alone]),  # (n, 77, 768)
                "pooled": torch.cat([pooled.cpu() for _, pooled, _ in alone]),  # (n, 768)
            }))  # fmt: skip
    record = {"arguments": vars(args), "store": dataset.store.fingerprint, "mapper": str(mapper_file)}
    report_decoded(rows, DESCRIPTION.chance, output_dir, record)


# ---------------------------------------------------------------- stage 2: decoded.jsonl → pictures


def read_embeddings(path: Path, rows: list[dict]) -> dict[int, Conditioning]:
    """The mapper's states and pooled vector of every decoded trial, by index."""
    if not path.exists():
        raise UserError(
            f"{path} is not there; --conditioning embedding and blend need it: run --stage decode with the same flag"
        )
    kept = load_file(path)
    found = {
        index: Conditioning(states[None], pooled[None])
        for index, states, pooled in zip(kept["index"].tolist(), kept["states"], kept["pooled"], strict=True)
    }
    lost = [row["index"] for row in rows if row["index"] not in found]
    if lost:
        raise UserError(f"{path} has no trial {lost[0]}; it belongs to another decoded.jsonl: run --stage decode again")
    return found


def draw(args, device: torch.device, stimuli: dict) -> None:
    """Draw from prompts, from the mapper's states, or from something between."""
    rows = read_decoded(Path(args.output_dir))
    if args.conditioning == "class":
        return draw_pictures(rows, stimuli, args, device)
    embeddings = read_embeddings(Path(args.output_dir) / "embeddings.safetensors", rows)

    def condition(generator, row):
        if args.conditioning == "embedding":
            return embeddings[row["index"]]
        return generator.embed(row["prompt"]).blend(embeddings[row["index"]], args.blend)

    def told(row):
        given = embeddings[row["index"]]
        digest = hashlib.sha256(given.states.numpy().tobytes() + given.pooled.numpy().tobytes()).hexdigest()
        return {"conditioning": args.conditioning, "blend": args.blend, "embedding": digest[:16]}

    draw_pictures(rows, stimuli, args, device, condition, told)


def main() -> None:
    args = parse_args()
    device = pick_device(args.cuda)
    if args.stage != "decode":  # asked before anything is decoded
        stimuli = stimulus_pictures(DESCRIPTION.stimuli, len(DESCRIPTION.classes), Path(args.stimuli_dir))
    if args.stage != "images":
        decode(args, device)
    if args.stage != "decode":
        draw(args, device, stimuli)


if __name__ == "__main__":
    run_script(main)

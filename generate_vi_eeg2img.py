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
from pathlib import Path

import torch
from safetensors.torch import save
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from datasets.visual_imagery_llm_dataset import DESCRIPTION, VisualImageryLLMDataset
from models.eeg_clip_mapper import EEGCLIPMapper, mapper_readouts
from models.features import tokens_for
from models.image_generator import Conditioning, image_model_address
from models.pictures import draw_pictures
from utils.checkpoints import best_checkpoint, read_checkpoint, read_tensors
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


def decode(args, device: torch.device) -> None:
    """Read the trials, map them, write decoded.jsonl. Every model is local to this function and ends with it."""
    dataset = VisualImageryLLMDataset(args.datasets_dir, args.split)
    chosen = dataset.spread(args.num_samples)

    # the checkpoint, and whether it belongs to these classes and this encoder
    mapper_file = best_checkpoint(Path(args.mapper_path), "mapper_epoch{}.pth")
    checkpoint = read_checkpoint(mapper_file)
    needed = {"classes", "token_pooling", "encoder_fingerprint", "settings", "mapper", "prototypes", "image_model"}
    missing = needed - set(checkpoint)
    if missing:
        raise UserError(f"{mapper_file}: no checkpoint of finetune_eeg_to_image.py (no {', '.join(sorted(missing))})")
    if tuple(checkpoint["classes"]) != DESCRIPTION.classes:
        raise UserError(
            f"{mapper_file} was trained on the classes {', '.join(checkpoint['classes'])}; expected "
            f"{', '.join(DESCRIPTION.classes)}"
        )
    try:
        mapper = EEGCLIPMapper(**checkpoint["settings"])
        mapper.load_state_dict(checkpoint["mapper"])
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{mapper_file} is damaged: its weights do not fit its settings ({error})") from None
    dataset.tokens = tokens_for(checkpoint, mapper_file, dataset, DESCRIPTION.montage, args, device)
    if dataset.tokens.shape[1] != checkpoint["settings"]["n_tokens"]:
        raise UserError(
            f"{mapper_file} was trained on {checkpoint['settings']['n_tokens']} tokens a trial; {args.datasets_dir} gives "
            f"{dataset.tokens.shape[1]}: its window has another length"
        )

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
    embeddings = output_dir / "embeddings.safetensors"
    embeddings.unlink(missing_ok=True)  # what another run left would not belong to these trials
    if args.conditioning != "class":
        with torch.no_grad():  # one trial at a time: rounding differs with the batch, and no picture may
            alone = [mapper(dataset[index]["x"][None].to(device)) for index in chosen]
        kept = {
            "index": torch.tensor(chosen),
            "states": torch.cat([states.cpu() for states, _, _ in alone]),  # (n, 77, 768)
            "pooled": torch.cat([pooled.cpu() for _, pooled, _ in alone]),  # (n, 768)
        }
        with written_whole(embeddings) as unfinished:
            unfinished.write_bytes(save(kept))
        for row, states, pooled in zip(rows, kept["states"], kept["pooled"], strict=True):
            row |= {"embedding": digest(states, pooled), "embedding_of": checkpoint["image_model"]}
    record = {"arguments": vars(args), "store": dataset.store.fingerprint, "mapper": str(mapper_file)}
    report_decoded(rows, DESCRIPTION.chance, output_dir, record)


# ---------------------------------------------------------------- stage 2: decoded.jsonl → pictures


def digest(states: torch.Tensor, pooled: torch.Tensor) -> str:
    """Tells one trial's states from another's."""
    return hashlib.sha256(states.numpy().tobytes() + pooled.numpy().tobytes()).hexdigest()[:16]


def read_embeddings(path: Path, rows: list[dict]) -> dict[int, Conditioning]:
    """The mapper's states and pooled vector of every decoded trial, by index.

    Raises
    ------
    UserError
        If they are not there or belong to other decoded trials.
    """
    if not path.exists() or not all("embedding" in row for row in rows):
        raise UserError(
            f"{path} is not there, or not of these trials; --conditioning embedding and blend need it: run --stage decode "
            "with the same flag"
        )
    kept = read_tensors(path)
    found = {}
    for index, states, pooled in zip(kept["index"].tolist(), kept["states"], kept["pooled"], strict=True):
        found[index] = digest(states, pooled), Conditioning(states[None], pooled[None])
    for row in rows:
        if found.get(row["index"], ("", None))[0] != row["embedding"]:
            raise UserError(f"{path} belongs to other trials than decoded.jsonl (trial {row['index']}); decode again")
    return {index: conditioning for index, (_, conditioning) in found.items()}


def draw(args, device: torch.device, stimuli: dict) -> None:
    """Draw from prompts, from the mapper's states, or from something between."""
    rows = read_decoded(Path(args.output_dir), DESCRIPTION.classes)
    if args.conditioning == "class":
        return draw_pictures(rows, stimuli, args, device)
    embeddings = read_embeddings(Path(args.output_dir) / "embeddings.safetensors", rows)
    trained_for = {row["embedding_of"] for row in rows} - {image_model_address(args.image_model)}
    if trained_for:
        print(f"notice: the mapper's states were trained towards {', '.join(sorted(trained_for))}, and {args.image_model} "
              "reads them now; another kind of model reads other states")  # fmt: skip

    def condition(generator, row):
        if args.conditioning == "embedding":
            return embeddings[row["index"]]
        return generator.embed(row["prompt"]).blend(embeddings[row["index"]], args.blend)

    def told(row):
        return {"conditioning": args.conditioning, "blend": args.blend, "embedding": row["embedding"]}

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

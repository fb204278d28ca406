"""The text pipelines: trials → decoded text, with a checkpoint of finetune_eeg_llm.py, → pictures."""

import re
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model, load_lora
from models.features import tokens_for
from models.pictures import draw_pictures
from utils.checkpoints import best_checkpoint, read_checkpoint
from utils.device import PRECISIONS, pick_device, pick_precision
from utils.drawing import stimulus_pictures
from utils.errors import UserError
from utils.records import read_decoded, report_decoded


def find_checkpoint(projection: Path, lora_dir: str | None) -> tuple[Path, Path]:
    """The projection file and adapter folder; of a run's folder, the best epoch's."""
    projection = best_checkpoint(projection, "projection_epoch{}.pth")
    if lora_dir:
        return projection, Path(lora_dir)
    epoch = re.fullmatch(r"projection_epoch(\d+)\.pth", projection.name)
    if not epoch:
        raise UserError(f"--lora_dir is needed: {projection.name} does not tell the epoch")
    return projection, projection.with_name(f"lora_epoch{epoch[1]}")


def decode_text(
    description, dataset, chosen: list[int], projection_file: Path, lora_dir: Path, args, device
) -> list[dict]:
    """Decode trials with both read-outs; every model is local to this function and ends with it.

    Parameters
    ----------
    description : DatasetDescription
    dataset : EEGTextDataset
    chosen : list of int
        Trials of the dataset.
    projection_file, lora_dir : Path
    args : argparse.Namespace
        The flags of `utils.flags.add_encoder_flags` and `add_text_flags`, and `batch_size`.
    device : torch.device

    Returns
    -------
    list of dict
        Lines for `decoded.jsonl`.

    Raises
    ------
    UserError
        If the checkpoint is none, or belongs to another dataset, encoder or language model.
    """
    # the checkpoint, and whether it belongs to this dataset and encoder
    checkpoint = read_checkpoint(projection_file)
    missing = {"dataset", "token_pooling", "encoder_fingerprint", "projection", "llm"} - set(checkpoint)
    if missing:
        raise UserError(f"{projection_file}: no checkpoint of finetune_eeg_llm.py (no {', '.join(sorted(missing))})")
    if checkpoint["dataset"] != description.name:
        raise UserError(f"{projection_file} was trained on {checkpoint['dataset']}; expected {description.name}")
    if not lora_dir.is_dir():
        raise UserError(f"{lora_dir}: no such LoRA folder; --lora_dir names the one saved beside the projection")
    dataset.tokens = tokens_for(checkpoint, projection_file, dataset, description.montage, args, device)

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
            decoded = description.text_readouts(text, score.softmax(0).tolist())
            rows.append(dataset.truth(index) | decoded | description.to_draw(decoded, args.readout))
    return rows


def text_to_pictures(description, Loader: type, projection: str, args) -> None:
    """The whole way of a script: EEG → decoded.jsonl, then decoded.jsonl → pictures, as `args.stage` asks.

    Parameters
    ----------
    description : DatasetDescription
    Loader : type
        The dataset's loader.
    projection : str
        Checkpoint or a run's folder.
    args : argparse.Namespace
        The flags of `utils.flags`; `generate_images` False ends stage `all` with decoded.jsonl.
    """
    device, output_dir = pick_device(args.cuda), Path(args.output_dir)
    draws = args.stage == "images" or (args.stage == "all" and args.generate_images)
    if draws:  # asked before anything is decoded
        stimuli = stimulus_pictures(description.stimuli, len(description.classes), Path(args.stimuli_dir))

    # stage 1: EEG → decoded.jsonl
    if args.stage != "images":
        dataset = Loader(args.datasets_dir, args.split)
        projection_file, lora_dir = find_checkpoint(Path(projection), args.lora_dir)
        chosen = dataset.spread(args.num_samples)
        rows = decode_text(description, dataset, chosen, projection_file, lora_dir, args, device)
        record = {"arguments": vars(args), "store": dataset.store.fingerprint, "projection": str(projection_file)}
        report_decoded(rows, description.chance, output_dir, record)

    # stage 2: decoded.jsonl → pictures
    if draws:
        draw_pictures(read_decoded(output_dir, description.classes), stimuli, args, device)

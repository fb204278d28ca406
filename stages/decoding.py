"""Checkpoints of the training scripts, brought back for decoding: whether they are whole and fit, and the models in them."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from datasets.description import DatasetDescription
from datasets.trials import TrialDataset
from models import FEATURE_ENCODERS, MAPPERS, POOLINGS, choose
from models.eeg_clip_mapper import EEGMapperModel
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model, load_lora, read_lora_settings
from stages.tokens import encoder_for, give_tokens
from utils.checkpoints import best_checkpoint, fingerprint, read_checkpoint
from utils.errors import UserError, loading

FOR_ALL = {
    "dataset",
    "encoder_name",
    "token_pooling",
    "encoder_fingerprint",
    "encoder",
    "n_times",
    "sfreq",
    "protocol",
    "seen",
}
FOR_TEXT = FOR_ALL | {"projection", "llm"}
FOR_MAPPER = FOR_ALL | {"classes", "mapper_name", "settings", "mapper", "prototypes", "image_model"}


# what a field must be, where a checkpoint has it
KINDS = {
    **dict.fromkeys(("dataset", "encoder_name", "token_pooling", "encoder_fingerprint", "protocol", "llm", "image_model",
                     "mapper_name"), str),
    **dict.fromkeys(("seen", "classes"), list), **dict.fromkeys(("projection", "mapper", "settings"), dict),
    "n_times": int, "sfreq": (int, float), "prototypes": torch.Tensor, "encoder": (dict, type(None)),
    **dict.fromkeys(("window", "regions"), (list, type(None))), "lora": (dict, type(None)), "preprocessing": (dict, type(None)),
}  # fmt: skip


def find_text_checkpoint(place: str | Path, lora_dir: str | None) -> tuple[Path, Path]:
    """The projection file and adapter folder; of a run's folder, the best epoch's."""
    projection = best_checkpoint(Path(place), "projection_epoch{}.pth")
    if lora_dir:
        return projection, Path(lora_dir)
    epoch = re.fullmatch(r"projection_epoch(\d+)\.pth", projection.name)
    if not epoch:
        raise UserError(f"--lora_dir is needed: {projection.name} does not tell the epoch")
    return projection, projection.with_name(f"lora_epoch{epoch[1]}")


def read_run_checkpoint(path: Path, needed: set[str], script: str, description: DatasetDescription) -> dict:
    """A checkpoint of a training script on this dataset.

    Raises UserError if it is damaged, of another script, of another dataset or of other classes.
    """
    checkpoint = read_checkpoint(path)
    missing = needed - set(checkpoint)
    if missing:
        raise UserError(
            f"{path} is not a checkpoint of this version's {script} (it has no {', '.join(sorted(missing))})"
        )
    wrong = [field for field, kind in KINDS.items() if field in checkpoint and not isinstance(checkpoint[field], kind)]
    lists = {field: checkpoint[field] for field in ("seen", "classes") if isinstance(checkpoint.get(field), list)}
    wrong += [field for field, texts in lists.items() if not all(isinstance(text, str) for text in texts)]
    if wrong:
        raise UserError(f"{path} is damaged: its {', '.join(wrong)} cannot be right; name another checkpoint")
    if checkpoint["dataset"] != description.name:
        raise UserError(f"{path} was trained on {checkpoint['dataset']}; expected {description.name}")
    if tuple(checkpoint.get("classes", description.classes)) != description.classes:
        raise UserError(
            f"{path} was trained on the classes {', '.join(checkpoint['classes'])}; expected {', '.join(description.classes)}"
        )
    for field, table in (("encoder_name", FEATURE_ENCODERS), ("token_pooling", POOLINGS)):
        if checkpoint[field] not in list(table):
            raise UserError(f"{path} has the {field} {checkpoint[field]!r}; expected one of {', '.join(table)}")
    return checkpoint


def check_unseen(seen: Sequence[str], protocol: str, dataset: TrialDataset, chosen: Sequence[int], where: str) -> None:
    """Refuse test trials of sessions that a checkpoint was trained or validated on; for other splits say so.

    seen : sequence of str. `TrialDataset.sessions` of its training and validation trials.
    protocol : str. The one that it was trained under.
    """
    both = sorted({dataset.trials[index].whose_session for index in chosen} & set(seen))
    if both and dataset.mode == "test":
        raise UserError(
            f"{where} was trained or validated on {', '.join(both[:5])} (--protocol {protocol}), which would be test trials "
            "now; decode under the protocol that it was trained under"
        )
    if both:
        print(
            f"notice: {where} has seen {len(both)} of these trials' sessions in training or validation; no test score"
        )


def checkpoint_encoder(
    checkpoint: dict, path: Path, dataset: TrialDataset, foundation: str | None, allow_partial: bool, seed: int
) -> nn.Module:
    """The encoder that a checkpoint was trained with, with the weights that it was trained to where it was.

    Raises UserError if the trials have another length or rate, or `foundation` is another encoder.
    """
    looked_at = [checkpoint.get(part) for part in ("window", "regions")]
    if looked_at != [dataset.window, dataset.regions]:
        raise UserError(f"{path} was trained on --window {looked_at[0]} --regions {looked_at[1]}; give the same ones")
    if (dataset.n_times, dataset.sfreq) != (checkpoint["n_times"], checkpoint["sfreq"]):
        raise UserError(
            f"{path} was trained on trials of {checkpoint['n_times']} samples at {checkpoint['sfreq']} Hz; "
            f"{dataset.store.path} has {dataset.n_times} at {dataset.sfreq} Hz: another window or recorder"
        )
    was, now = checkpoint.get("preprocessing"), dataset.facts["preprocessing"]
    if was is not None and now is not None and was != now:
        other = ", ".join(
            f"{name} {now.get(name)} and not {value}" for name, value in was.items() if now.get(name) != value
        )
        raise UserError(f"{path} was trained on trials that were prepared otherwise: {dataset.store.path} has {other}")
    encoder = encoder_for(dataset, checkpoint["encoder_name"], foundation, allow_partial, seed)
    if encoder.pretrained and fingerprint(encoder) != checkpoint["encoder_fingerprint"]:
        raise UserError(f"{path} was trained on the features of another encoder than {foundation}")
    if checkpoint["encoder"] is not None:
        load_state(encoder, checkpoint["encoder"], path)
    return encoder


def connect(
    model: EEGLanguageModel | EEGMapperModel, checkpoint: dict, encoder: nn.Module, dataset: TrialDataset,
    cache_dir: str | None, cached: bool, device: torch.device,
) -> None:  # fmt: skip
    """Give the dataset its tokens (a frozen encoder), or the model its encoder and pooling.

    Raises UserError if a trial has another number of tokens than the mapper was trained on.
    """
    cached = cached and encoder.pretrained
    reducer = give_tokens([dataset], encoder, cached, checkpoint["token_pooling"], cache_dir, device)
    if not cached:
        model.encoder, model.reducer = encoder.to(device).eval(), reducer.to(device)
        return
    n_tokens = checkpoint.get("settings", {}).get("n_tokens", dataset.tokens.shape[1])
    if n_tokens != dataset.tokens.shape[1]:
        raise UserError(
            f"the mapper was trained on {n_tokens} tokens a trial; {dataset.store.path} gives {dataset.tokens.shape[1]}"
        )


def load_text_model(
    checkpoint: dict, path: Path, lora_dir: Path, llm: str | None, quantize: bool, dtype: torch.dtype,
    device: torch.device, description: DatasetDescription, width: int,
) -> EEGLanguageModel:  # fmt: skip
    """The language model with its adapter, and the projection of tokens of a width.

    Raises UserError if a part is missing, damaged, or made for another part.
    """
    if not lora_dir.is_dir():
        raise UserError(f"{lora_dir}: no such LoRA folder; --lora_dir names the one saved beside the projection")
    lora = read_lora_settings(lora_dir)
    language_model, tokenizer = load_language_model(llm or checkpoint["llm"], device, quantize, dtype)
    language_model = add_lora(language_model, **lora)
    load_lora(language_model, lora_dir, checkpoint.get("lora"))
    projection = EEGProjection(language_model.get_input_embeddings().weight.shape[1], width)
    try:
        projection.load_state_dict(checkpoint["projection"])
    except RuntimeError:
        raise UserError(f"{path} does not fit the language model's width; --llm names another") from None
    model = EEGLanguageModel(language_model, tokenizer, description.system_prompt, description.user_prompt, projection)
    return model.to(device).eval()


def load_mapper_model(checkpoint: dict, path: Path, device: torch.device) -> EEGMapperModel:
    """The mapper; UserError where the checkpoint is damaged."""
    with loading(f"{path} is damaged: its mapper", "name another checkpoint"):
        kind, settings = choose(MAPPERS, checkpoint["mapper_name"]), checkpoint["settings"]
        with torch.device("meta"):  # takes no memory: are these settings of these weights?
            shapes = {name: value.shape for name, value in kind(**settings).state_dict().items()}
        if shapes != {name: value.shape for name, value in checkpoint["mapper"].items()}:
            raise ValueError("its weights do not fit its settings")
        prototypes = checkpoint["prototypes"]
        if (prototypes.shape, prototypes.dtype) != ((settings["n_classes"], settings["clip_width"]), torch.float32):
            raise ValueError(f"its prototypes are {tuple(prototypes.shape)} {prototypes.dtype}")
        mapper = kind(**settings)
    load_state(mapper, checkpoint["mapper"], path)
    return EEGMapperModel(mapper).to(device).eval()


def load_state(module: nn.Module, state: dict, path: Path) -> None:
    """Put a checkpoint's weights into a module; UserError where they do not fit."""
    try:
        module.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged: its weights do not fit its settings ({reason})") from None

"""Checkpoints of the training scripts, brought back: one reader, one check of what each must hold, and their models."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from datasets.alignment import ADAPTATIONS
from datasets.description import DatasetDescription
from datasets.splits import check_protocol
from datasets.trials import TrialDataset, part_of
from models import ADAPTERS, FEATURE_ENCODERS, MAPPERS, POOLINGS, choose, is_in
from models.eeg_clip_mapper import EEGMapperModel
from models.image_generator import image_model_address
from models.loading import building, built
from models.prior import CaptionAdapter, DiffusionPrior
from models.structure import StructuralVAE
from models.token_encoders import AfterEncoder
from stages.tokens import encoder_for, mirror_of, with_features
from utils.checkpoints import WEIGHTS, best_checkpoint, fingerprint, must_be_finite, read_checkpoint
from utils.errors import UserError, loading
from utils.files import read_json
from utils.hub import address_in, has_file, local_folder, model_identity

HINT = "name another checkpoint"


class Kind(NamedTuple):
    """A kind of checkpoint: the script that writes it, its name with {} for the epoch, the fields that it must have."""

    script: str
    name: str
    needed: str


OF_PEOPLE = "dataset protocol seen"
OF_TOKENS = f"{OF_PEOPLE} encoder_name token_pooling encoder_fingerprint encoder n_times sfreq"
OF_MAPPER = f"{OF_TOKENS} classes mapper_name settings mapper prototypes image_model"
OF_EMBEDDING = (
    f"{OF_PEOPLE} target objective granularity clip_model image_model token_pooling classes people "
    "encoder_fingerprint units settings model n_times sfreq shuffled seed"
)
OF_PRIOR = "what settings model encoder shuffled"
KINDS = {
    "text": Kind("finetune_eeg_llm.py", "projection_epoch{}.pth", f"{OF_TOKENS} projection llm"),
    "mapper": Kind("finetune_eeg_to_image.py", "mapper_epoch{}.pth", OF_MAPPER),
    "embedding": Kind("finetune_eeg_to_clip.py", "encoder_epoch{}.pth", OF_EMBEDDING),
    "prior": Kind("train_prior.py --what prior", "prior_epoch{}.pth", f"{OF_PRIOR} clip"),
    "caption": Kind("train_prior.py --what caption", "caption_epoch{}.pth", f"{OF_PRIOR} captioner"),
    "vae": Kind("train_structure.py --what vae", "vae_epoch{}.pth", "dataset settings model seen"),
}
LISTS = ("seen", "classes", "people", "absent")  # of texts
NOTHING = type(None)
# what fields must be, where a checkpoint has them. `encoder` is a prior's fingerprint, or weights
FIELDS = {
    (
        str,
    ): "dataset protocol encoder_name token_pooling encoder_fingerprint llm image_model mapper_name target objective "
    "granularity clip_model units what clip captioner align align_method adapt",
    (list,): " ".join(LISTS),
    (dict,): "projection mapper settings model",
    (bool,): "mirror_average shuffled",
    (int,): "n_times seed epoch",
    (int, float): "sfreq",
    (str, NOTHING): "adapter_name",
    (list, NOTHING): "window regions band clip_layer blur",
    (dict, NOTHING): "lora preprocessing words head adapter",
    (dict, str, NOTHING): "encoder",
    (torch.Tensor, NOTHING): "prototypes centre",
}
TYPES = {field: kinds for kinds, fields in FIELDS.items() for field in fields.split()}


def read_run_checkpoint(place: Path, kind: str) -> tuple[Path, dict]:
    """The file and content of a checkpoint (a folder's best one); UserError if damaged, or of another kind."""
    script, name, needed = KINDS[kind]
    path = best_checkpoint(place, name)
    checkpoint = read_checkpoint(path)
    if missing := ", ".join(sorted(field for field in needed.split() if field not in checkpoint)):
        raise UserError(f"{path} is not a checkpoint of {script} of this version (it has no {missing}); {HINT}")
    if wrong := wrong_fields(checkpoint):
        raise UserError(f"{path} is damaged: its {', '.join(wrong)} cannot be right; {HINT}")
    if checkpoint.get("what", kind) != kind:
        raise UserError(f"{path} is not a checkpoint of {script}, but of --what {checkpoint['what']}; {HINT}")
    return path, checkpoint


def wrong_fields(checkpoint: dict) -> list[str]:
    """The fields of a checkpoint that are of another kind than training writes."""
    wrong = [k for k, kinds in TYPES.items() if k in checkpoint and not isinstance(checkpoint[k], kinds)]
    lists = [k for k in LISTS if k in checkpoint and k not in wrong]
    return wrong + [k for k in lists if not all(isinstance(text, str) for text in checkpoint[k])]


def check_dataset(path: Path, checkpoint: dict, description: DatasetDescription) -> None:
    """UserError where a checkpoint is of another dataset or other classes, or of an unknown encoder or pooling."""
    if checkpoint["dataset"] != description.name:
        raise UserError(f"{path} was trained on {checkpoint['dataset']}; expected {description.name}")
    if tuple(checkpoint.get("classes", description.classes)) != description.classes:
        was, expected = ", ".join(checkpoint["classes"]), ", ".join(description.classes)
        raise UserError(f"{path} was trained on the classes {was}; expected {expected}")
    tables = {"encoder_name": FEATURE_ENCODERS, "token_pooling": POOLINGS, "adapt": ADAPTATIONS}
    tables |= {"adapter_name": ADAPTERS} if checkpoint.get("adapter_name") else {}
    for field, table in tables.items():
        if field in checkpoint and not is_in(table, checkpoint[field]):
            raise UserError(f"{path} has the {field} {checkpoint[field]!r}; expected one of {', '.join(table)}")


def as_trained(
    description: DatasetDescription, path: Path, checkpoint: dict, other_words: bool = False
) -> DatasetDescription:
    """The dataset in the words that a checkpoint was trained on, unless there are others.

    Raises UserError where the checkpoint is of another dataset or other classes, or its protocol is none.
    """
    check_dataset(path, checkpoint, description)
    check_protocol(checkpoint["protocol"])
    return description if other_words else description.with_words(checkpoint.get("words") or {}, str(path))


def _built(kind: type, checkpoint: dict, path: Path) -> nn.Module:
    """A model with the settings and the weights of a checkpoint, finite, in evaluation mode."""
    with loading(str(path), HINT), building(str(path), path):
        model = built(kind, checkpoint["settings"], checkpoint["model"])
        must_be_finite(model)
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------- pipelines 1 to 3: who was seen, encoder, text, mapper


def check_unseen(seen: Sequence[str], protocol: str, dataset: TrialDataset, chosen: Sequence[int], where: str) -> None:
    """Refuse test trials of sessions that a checkpoint was trained or validated on; for other splits say so.

    seen : sequence of str. `TrialDataset.seen` of its training and validation trials.
    protocol : str. The one that it was trained under.
    """
    both = sorted({mark for index in chosen for mark in dataset.trials[index].marks.values()} & set(seen))
    if both and dataset.mode == "test":
        sessions = f"{', '.join(both[:5])} (--protocol {protocol}), which would be test trials now"
        what = f"{where} was trained or validated on {sessions}"
        raise UserError(f"{what}; decode under the protocol that it was trained under")
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
    was, now = part_of(checkpoint), part_of(dataset.facts)
    if other := [name for name in was if was[name] != now[name]]:
        asked = " ".join(f"--{name} {was[name]}" for name in other)
        raise UserError(f"{path} was trained on {asked}; give the same")
    if (dataset.n_times, dataset.sfreq) != (checkpoint["n_times"], checkpoint["sfreq"]):
        was = f"trials of {checkpoint['n_times']} samples at {checkpoint['sfreq']} Hz"
        now = f"{dataset.store.path} has {dataset.n_times} at {dataset.sfreq} Hz: another window or recorder"
        raise UserError(f"{path} was trained on {was}; {now}")
    was, now = checkpoint.get("preprocessing"), dataset.facts["preprocessing"]
    if was is not None and now is not None and was != now:
        other = ", ".join(f"{k} {now.get(k)} and not {value}" for k, value in was.items() if now.get(k) != value)
        raise UserError(f"{path} was trained on trials that were prepared otherwise: {dataset.store.path} has {other}")
    encoder = encoder_for(dataset, checkpoint["encoder_name"], foundation, allow_partial, seed)
    if encoder.pretrained and fingerprint(encoder) != checkpoint["encoder_fingerprint"]:
        raise UserError(f"{path} was trained on the features of another encoder than {foundation}")
    if checkpoint["encoder"] is not None:
        with loading(f"{path} is damaged: its encoder", HINT):
            encoder.load_state_dict(checkpoint["encoder"])
    return encoder


def connect(
    model: nn.Module,
    checkpoint: dict,
    encoder: nn.Module,
    dataset: TrialDataset,
    cache_dir: str | None,
    cached: bool,
    device: torch.device,
) -> TrialDataset:
    """Trials as the model reads them: as tokens of a frozen encoder. Else the model gets its encoder and pooling.

    model : EEGLanguageModel or EEGMapperModel
    Raises UserError if a trial has another number of tokens than the mapper was trained on.
    """
    cached = cached and encoder.pretrained and not checkpoint.get("mirror_average")  # a mirror image has no kept tokens
    splits, reducer = with_features({"": dataset}, encoder, cached, checkpoint["token_pooling"], cache_dir, device)
    dataset = splits[""]
    if not cached:
        model.encoder, model.reducer = encoder.to(device).eval(), reducer.to(device)
        model.mirror = mirror_of(dataset, "signal") if checkpoint.get("mirror_average") else None
    check_parts(model, dataset, device)
    n_tokens = dataset.tokens.shape[1] if cached else None
    was = checkpoint.get("settings", {}).get("n_tokens", n_tokens)
    if cached and was != n_tokens:
        raise UserError(f"the mapper was trained on {was} tokens a trial; {dataset.store.path} gives {n_tokens}")
    return dataset


def check_parts(model: nn.Module, dataset: TrialDataset, device: torch.device) -> None:
    """Raise UserError where a text model's head or adapter is for another number of tokens, or of classes."""
    parts = [getattr(model, name) for name in ("head", "adapter") if getattr(model, name, None) is not None]
    if not parts or not len(dataset):
        return
    with torch.no_grad():
        tokens = AfterEncoder.encode(model, dataset[0]["x"][None].to(device))
    try:
        outputs = [part(tokens).shape[-1] for part in parts]
    except RuntimeError:
        outputs = []
    if not outputs or (model.head is not None and outputs[0] != len(dataset.description.classes)):
        raise UserError(f"the checkpoint's head or adapter is for other tokens than {tokens.shape[1]} a trial; {HINT}")


def find_text_checkpoint(place: str | Path, lora_dir: str | None) -> tuple[Path, Path]:
    """The projection file and adapter folder; of a run's folder, the best epoch's."""
    projection = best_checkpoint(Path(place), KINDS["text"].name)
    if lora_dir:
        return projection, best_adapter(Path(lora_dir))
    if projection.name == WEIGHTS:
        return projection, best_adapter(projection.parent)
    epoch = re.fullmatch(r"projection_epoch(\d+)\.pth", projection.name)
    if not epoch:
        raise UserError(f"--lora_dir is needed: {projection.name} does not tell the epoch")
    return projection, projection.with_name(f"lora_epoch{epoch[1]}")


def best_adapter(place: Path) -> Path:
    """The adapter's folder behind a folder, a run's folder, or an address on the hub of either."""
    folder = local_folder(place, None)
    if (folder / "adapter_config.json").is_file() or not (folder / "results.json").is_file():
        return folder
    return folder / f"lora_epoch{read_json(folder / 'results.json').get('best_epoch')}"


def load_text_model(
    checkpoint: dict,
    path: Path,
    lora_dir: Path,
    llm: str | None,
    quantize: bool,
    dtype: torch.dtype,
    device: torch.device,
    description: DatasetDescription,
    width: int,
) -> nn.Module:
    """The `EEGLanguageModel` with adapter and projection; UserError if one is missing, damaged, or of another model."""
    # the language model's libraries take seconds to import, and pipelines 3 to 6 need none of them
    from models import eeg_llm

    if not lora_dir.is_dir():
        raise UserError(f"{lora_dir}: no such LoRA folder; --lora_dir names the one saved beside the projection")
    lora = eeg_llm.read_lora_settings(lora_dir)
    beside = path.parent / checkpoint["llm"]  # a small one that share.py has sent with the run
    name = llm or (str(beside) if beside.is_dir() else checkpoint["llm"])
    language_model, tokenizer = eeg_llm.load_language_model(name, device, quantize, dtype)
    language_model = eeg_llm.add_lora(language_model, **lora)
    eeg_llm.load_lora(language_model, lora_dir, checkpoint.get("lora"))
    projection = eeg_llm.EEGProjection(language_model.get_input_embeddings().weight.shape[1], width)
    try:
        projection.load_state_dict(checkpoint["projection"])
    except RuntimeError:
        raise UserError(f"{path} does not fit the language model's width; --llm names another") from None
    parts = {"head": None, "adapter": None}
    with loading(f"{path} is damaged: its head or adapter", HINT):
        if state := checkpoint.get("adapter"):
            parts["adapter"] = choose(ADAPTERS, checkpoint["adapter_name"])(*state["positions"].shape)
        if state := checkpoint.get("head"):
            n_classes, n_features = state["linear.weight"].shape
            parts["head"] = eeg_llm.ClassHead(n_features // width, width, n_classes, "norm.weight" in state)
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(checkpoint[name])
                must_be_finite(part)
    prompts = description.system_prompt, description.user_prompt
    return eeg_llm.EEGLanguageModel(language_model, tokenizer, *prompts, projection, **parts).to(device).eval()


def load_mapper_model(checkpoint: dict, path: Path, device: torch.device) -> EEGMapperModel:
    """The mapper; UserError where the checkpoint is damaged."""
    with loading(f"{path} is damaged: its mapper", HINT), building(str(path), path):
        kind, settings = choose(MAPPERS, checkpoint["mapper_name"]), checkpoint["settings"]
        mapper = built(kind, settings, checkpoint["mapper"])
        prototypes = checkpoint["prototypes"]
        if (prototypes.shape, prototypes.dtype) != ((settings["n_classes"], settings["clip_width"]), torch.float32):
            raise ValueError(f"its prototypes are {tuple(prototypes.shape)} {prototypes.dtype}")
    return EEGMapperModel(mapper).to(device).eval()


# ---------------------------------------------------------------- pipelines 4 to 6: prior, caption adapter, SGDM's VAE


def read_prior(place: Path, encoder: str, clip: str | None, width: int) -> tuple[DiffusionPrior, bool]:
    """The prior of a run, and whether it is a shuffled-label control.

    encoder, clip : str. Fingerprint of the encoder whose embeddings go in; identity of the CLIP of those that come out.
    width : int. Of both embeddings.
    Raises UserError if the file is damaged, or the prior is of another encoder or other targets.
    """
    path, checkpoint = read_run_checkpoint(place, "prior")
    _check_reads(path, checkpoint, "condition_dim", encoder, width)
    if clip and checkpoint["clip"] != clip:
        raise UserError(f"{path} was trained on the embeddings of another CLIP than the encoder")
    if checkpoint["settings"].get("dim") != width:
        raise UserError(f"{path} gives embeddings of width {checkpoint['settings'].get('dim')}; expected {width}")
    return _built(DiffusionPrior, checkpoint, path), checkpoint["shuffled"]


def read_adapter(place: Path, encoder: str, captioner: str, width: int) -> tuple[CaptionAdapter, bool]:
    """The caption adapter of a run, and whether it is a control; UserError as above, or for another captioner."""
    path, checkpoint = read_run_checkpoint(place, "caption")
    _check_reads(path, checkpoint, "dim", encoder, width)
    if checkpoint["captioner"] != model_identity(captioner):
        raise UserError(f"{path} was trained towards the tokens of another captioner than {captioner}")
    return _built(CaptionAdapter, checkpoint, path), checkpoint["shuffled"]


def _check_reads(path: Path, checkpoint: dict, field: str, encoder: str, width: int) -> None:
    if (reads := checkpoint["settings"].get(field)) != width:
        raise UserError(f"{path} reads embeddings of width {reads}; the encoder gives {width}")
    if checkpoint["encoder"] != encoder:
        raise UserError(f"{path} was trained on the embeddings of another encoder; train it on this one")


def read_vae(place: Path) -> tuple[StructuralVAE, dict]:
    """SGDM's VAE in evaluation mode, and its checkpoint; UserError where it is none, or damaged."""
    path, checkpoint = read_run_checkpoint(place, "vae")
    return _built(StructuralVAE, checkpoint, path), checkpoint


def must_not_have_seen(checkpoint: dict, place: Path, images: Iterable[str]) -> None:
    """Raise UserError where a VAE or ControlNet was trained on an image that is to be tested on."""
    if seen := sorted(set(checkpoint["seen"]) & set(images)):
        first = f"{seen[0]} and {len(seen) - 1} more of the test images"
        raise UserError(f"{place} was trained on {first}; train it under this protocol")


def controlnet_folder(name: str) -> Path:
    """The folder of a ControlNet; a published one's address stays as it is, for diffusers to find.

    name : str. A folder in the hub's layout, a run of train_structure.py --what controlnet, or the address of either.
    """
    address, place = address_in(name), Path(name)
    if address and (address["revision"] or has_file(address["repo"], "results.json")):
        return local_folder(name, "config.json")
    if (place / "results.json").is_file() and not (place / "config.json").is_file():
        return best_checkpoint(place, "controlnet_epoch{}")
    return place


def check_controlnet(controlnet: str, image_model: str, candidates: Iterable[str]) -> None:
    """UserError where a ControlNet of train_structure.py has seen a candidate image, or is for another image model."""
    if (facts := Path(controlnet) / "facts.json").is_file():
        trained = read_json(facts)
        with loading(str(facts), "train the ControlNet again"):
            must_not_have_seen(trained, Path(controlnet), candidates)
            if trained["image_model"] != model_identity(image_model_address(image_model)):
                raise UserError(f"--controlnet {controlnet} was trained for another image model than {image_model}")

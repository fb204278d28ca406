"""Checkpoints of text and mapper runs → decoded trials: of one run, or the mean of several that saw the same trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from datasets.description import DatasetDescription
from datasets.trials import TrialDataset, part_as_trained
from stages import checkpoints
from stages.adaptation import Adapter, set_straight
from stages.pieces import DecodedPieces
from stages.rows import Row, draw_what, mapper_readouts, mean_of, new_row, text_readouts
from stages.tokens import checkpoint_facts
from utils.device import PRECISIONS, pick_precision
from utils.errors import UserError
from utils.processes import Processes
from utils.progress import progress


class Checkpoint(NamedTuple):
    """A run's file, what it holds, and of a text run its adapter's folder."""

    path: Path
    content: dict
    lora_dir: Path | None = None


@dataclass
class DecodingSettings:
    """How trials are decoded; flags of the same names."""

    datasets_dir: str
    split: str
    protocol: str
    num_samples: int
    output_dir: str
    foundation_dir: str
    use_pretrained_weights: bool
    allow_partial: bool
    encoder_seed: int
    cache_dir: str | None
    no_cache_features: bool
    batch_size: int
    readout: str | None
    conditioning: str = "class"  # of a mapper
    llm: str | None = None  # of a text run, as the others below
    no_quantize: bool = False
    precision: str = "auto"
    max_new_tokens: int = 64
    chosen: Sequence[int] | None = None  # which trials of the split; None: `num_samples`, spread over it

    @classmethod
    def among(cls, flags: Mapping) -> "DecodingSettings":
        """Those that stand among a script's flags."""
        return cls(**{field.name: flags[field.name] for field in fields(cls) if field.name in flags})


def read_text_runs(places: Sequence[str], lora_dir: str | None) -> list[Checkpoint]:
    """The checkpoints behind some places; UserError where one is none, or several were trained for different tests."""
    if lora_dir and len(places) > 1:
        raise UserError("--lora_dir names one adapter; of several runs each has its own beside its projection")
    runs = []
    for place in places:
        path, adapter = checkpoints.find_text_checkpoint(place, lora_dir)
        path, content = checkpoints.read_run_checkpoint(path, "text")
        runs.append(Checkpoint(path, content, adapter))
    return of_one("protocol", runs)


def read_mapper_runs(places: Sequence[str]) -> list[Checkpoint]:
    """As `read_text_runs`; they must have been trained towards one image model's states as well."""
    runs = [Checkpoint(*checkpoints.read_run_checkpoint(Path(place), "mapper")) for place in places]
    return of_one("image_model", of_one("protocol", runs))


def of_one(field: str, runs: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    """The runs; UserError where a field differs between them."""
    if len(values := {str(run.content[field]) for run in runs}) > 1:
        raise UserError(f"the runs have the {field} {' and '.join(sorted(values))}; name runs of one {field}")
    return runs


def decode_text(
    runs: Sequence[Checkpoint], description: DatasetDescription, settings: DecodingSettings, processes: Processes
) -> tuple[list[Row], dict]:
    """Rows of `num_samples` trials with what is drawn of each; and what run.json keeps.

    processes : Processes. Those that share the trials; each gets all rows.
    Of several runs, read-outs are the means of their probabilities; there is no text of several.
    Raises UserError where trials were trained on, or a model does not fit.
    """
    readout = settings.readout or ("keyword" if len(runs) == 1 else "likelihood")
    decoded = [_texts(run, number, description, settings, processes) for number, run in enumerate(runs)]
    rows = decoded[0][0] if len(runs) == 1 else mean_of([rows for rows, _ in decoded])
    if readout not in rows[0].readouts:
        of = "of several runs there are" if len(runs) > 1 else "the run has"
        raise UserError(f"--readout {readout}: {of} {', '.join(rows[0].readouts)}")
    return [draw_what(row, description, readout) for row in rows], decoded[0][1] | {"projection": _paths(runs)}


def decode_embeddings(
    runs: Sequence[Checkpoint], description: DatasetDescription, settings: DecodingSettings, processes: Processes
) -> tuple[list[Row], dict[int, tuple[torch.Tensor, torch.Tensor]], dict]:
    """As `decode_text`, by mappers; and by trial their states (1, 77, D) and pooled vector (1, D), if they are drawn.

    Of several runs both are means.
    """
    decoded = [_mapped(run, description, settings, processes) for run in runs]
    rows = decoded[0][0] if len(runs) == 1 else mean_of([rows for rows, _, _ in decoded])
    for row in rows:
        row.text = description.canonical[row.readouts[settings.readout].label]
    outputs = {}
    for index in decoded[0][1]:
        of_runs = zip(*(of[index] for _, of, _ in decoded), strict=True)  # all states, all pooled vectors
        outputs[index] = tuple(torch.stack(of).mean(dim=0) for of in of_runs)
    rows = [draw_what(row, description, settings.readout) for row in rows]
    return rows, outputs, decoded[0][2] | {"mapper": _paths(runs)}


def _paths(runs: Sequence[Checkpoint]) -> str | list[str]:
    """What run.json says of the checkpoints: one name, or a list of several."""
    return str(runs[0].path) if len(runs) == 1 else [str(run.path) for run in runs]


def _opened(
    run: Checkpoint, description: DatasetDescription, settings: DecodingSettings
) -> tuple[TrialDataset, list[int], torch.nn.Module]:
    """The trials as the run read them, which of them are decoded, and the encoder."""
    dataset = TrialDataset(settings.datasets_dir, settings.split, settings.protocol, description)
    chosen = settings.chosen or dataset.spread(settings.num_samples)
    dataset = part_as_trained(dataset, run.content, run.path)
    checkpoints.check_unseen(run.content["seen"], run.content["protocol"], dataset, chosen, str(run.path))
    foundation = settings.foundation_dir if settings.use_pretrained_weights else None
    encoder = checkpoints.checkpoint_encoder(
        run.content, run.path, dataset, foundation, settings.allow_partial, settings.encoder_seed
    )
    return dataset, chosen, encoder


def _texts(
    run: Checkpoint, number: int, description: DatasetDescription, settings: DecodingSettings, processes: Processes
) -> tuple[list[Row], Mapping]:
    """One run's rows. Its model is freed with this function."""
    (path, checkpoint, lora_dir), device = run, processes.device
    dataset, chosen, encoder = _opened(run, description, settings)
    precision = pick_precision(settings.precision, device)
    model = checkpoints.load_text_model(
        checkpoint, path, lora_dir, settings.llm, not settings.no_quantize, PRECISIONS[precision], device,
        description, encoder.width,
    )  # fmt: skip
    how = settings.cache_dir, not settings.no_cache_features, device
    dataset = checkpoints.connect(model, checkpoint, encoder, dataset, *how)
    adapter = Adapter(checkpoint.get("adapt", "none"), model.class_logits, model.encoder, dataset, device)
    batches = adapter.batches(chosen, settings.batch_size, processes.index, processes.n)
    decides = {
        "precision": precision,
        "device": device.type,
        "batch_size": settings.batch_size,
        "max_new_tokens": settings.max_new_tokens,
        "adapt": checkpoint.get("adapt"),
    }
    order = [place for batch in batches for place in batch]
    rank = number * processes.n + processes.index
    pieces = DecodedPieces(Path(settings.output_dir), model, dataset, order, rank, **decides)
    rows = []
    with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        model.read_prefix()
        loader = DataLoader(dataset, batch_sampler=batches)
        bar = progress(loader, desc="decoding", unit="batch", disable=not processes.first)
        for place, batch in enumerate(bar):
            adapter.before(batches[place])
            decoded = pieces.get(place)  # what an interrupted run has decoded already
            if decoded is None:
                decoded = model.read(batch["x"].to(device), description.canonical, settings.max_new_tokens)
                pieces.add(decoded)
            adapter.after(batches[place])
            for index, (text, probabilities) in zip(batch["index"].tolist(), decoded, strict=True):
                readouts = text_readouts(description, text, probabilities)
                rows.append(new_row(dataset, index, readouts, text, adapter.adaptation.uses))
    rows = sorted(processes.gathered(rows), key=lambda row: row.index)  # decoded session by session, or by several
    if adapter.adaptation.changes == "answers" and len(rows) < len(dataset):
        print(f"notice: {path} was tested with --adapt {checkpoint['adapt']}: its answers to {len(rows)} of "
              f"{len(dataset)} trials are set straight by these alone, and may differ from the test's")  # fmt: skip
    rows = set_straight(rows, checkpoint.get("adapt", "none"))
    return rows, {"store": dataset.store.fingerprint} | checkpoint_facts(encoder)


@torch.no_grad()
def _mapped(
    run: Checkpoint, description: DatasetDescription, settings: DecodingSettings, processes: Processes
) -> tuple[list[Row], dict[int, tuple], Mapping]:
    """One run's rows, and its states and pooled vectors where drawing needs them."""
    (path, checkpoint, _), device = run, processes.device
    dataset, chosen, encoder = _opened(run, description, settings)
    model = checkpoints.load_mapper_model(checkpoint, path, device)
    how = settings.cache_dir, not settings.no_cache_features, device
    dataset = checkpoints.connect(model, checkpoint, encoder, dataset, *how)
    prototypes = checkpoint["prototypes"].to(device)

    def read(places: Sequence[int]) -> tuple[list[Row], dict[int, tuple]]:
        outputs = model(torch.stack([dataset[place]["x"] for place in places]).to(device))
        readouts = zip(places, mapper_readouts(outputs, prototypes), strict=True)
        rows, alone = [new_row(dataset, place, own, "") for place, own in readouts], {}
        if settings.conditioning != "class":  # one trial at a time: rounding differs with the batch, and no picture may
            for place in places:
                of_trial = model(dataset[place]["x"][None].to(device))
                alone[place] = tuple(part.cpu() for part in of_trial[:2])
        return rows, alone

    parts = processes.each(read, chosen, settings.batch_size, "decoding")
    rows = [row for of_part, _ in parts for row in of_part]
    alone = {place: of_trial for _, of_part in parts for place, of_trial in of_part.items()}
    return rows, alone, {"store": dataset.store.fingerprint} | checkpoint_facts(encoder)

"""Checkpoints of text and mapper runs → decoded trials: of one run, or the mean of several that saw the same trials."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from datasets.description import DatasetDescription
from datasets.trials import TrialDataset, part_as_trained
from models.eeg_llm import EEGLanguageModel
from stages import checkpoints
from stages.adaptation import ADAPTATIONS, Adapter, set_straight
from stages.rows import Row, draw_what, mapper_readouts, mean_of, new_row, text_readouts
from stages.tokens import checkpoint_facts
from utils.checkpoints import as_bytes, fingerprint
from utils.device import PRECISIONS, pick_precision
from utils.errors import UserError
from utils.files import code_digest
from utils.paths import append, written_whole
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
    adapt = checkpoint.get("adapt", "none")
    rows = read_trials(
        model, dataset, chosen, processes, precision, settings.batch_size, settings.max_new_tokens, adapt,
        keep_in=Path(settings.output_dir), run=number,
    )  # fmt: skip
    if ADAPTATIONS[adapt].changes == "answers" and len(rows) < len(dataset):
        print(f"notice: {path} was tested with --adapt {adapt}: its answers to {len(rows)} of "
              f"{len(dataset)} trials are set straight by these alone, and may differ from the test's")  # fmt: skip
    return rows, {"store": dataset.store.fingerprint} | checkpoint_facts(encoder)


def read_trials(
    model: EEGLanguageModel, dataset: TrialDataset, chosen: Sequence[int], processes: Processes, precision: str,
    batch_size: int, max_new_tokens: int, adapt: str = "none", name: str = "decoding", keep_in: Path | None = None,
    run: int = 0,
) -> list[Row]:  # fmt: skip
    """What a text model says of the chosen trials, with all read-outs: their rows in order, on every process.

    adapt : str. Key of ADAPTATIONS. name : str. Of the progress bar.
    keep_in : Path, optional. Folder where each batch is kept until all are decoded. run : int. Which of several.
    """
    device, rows, pieces = processes.device, [], None
    adapter = Adapter(adapt, model.class_logits, model.encoder, dataset, device)
    batches = adapter.batches(chosen, batch_size, processes.index, processes.n)
    if keep_in:
        decides = {"precision": precision, "device": device.type, "batch_size": batch_size}
        decides |= {"max_new_tokens": max_new_tokens, "adapt": adapt}
        order = [place for batch in batches for place in batch]
        pieces = DecodedPieces(keep_in, model, dataset, order, run * processes.n + processes.index, **decides)
    half = torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")
    with half:
        model.read_prefix()
    loader = DataLoader(dataset, batch_sampler=batches)
    bar = progress(loader, desc=name, unit="batch", leave=False, disable=not processes.first)
    for place, batch in enumerate(bar):
        adapter.before(batches[place])
        decoded = pieces.get(place) if pieces else None  # what an interrupted run has decoded already
        if decoded is None:
            with half:
                decoded = model.read(batch["x"].to(device), dataset.description.canonical, max_new_tokens)
            if pieces:
                pieces.add(decoded)
        adapter.after(batches[place])
        for index, (text, probabilities) in zip(batch["index"].tolist(), decoded, strict=True):
            readouts = text_readouts(dataset.description, text, probabilities)
            rows.append(new_row(dataset, index, readouts, text, adapter.adaptation.uses))
    adapter.restore()
    # decoded session by session, or by several
    return set_straight(sorted(processes.gathered(rows), key=lambda row: row.index), adapt)


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


# ---------------------------------------------------------------- batches, kept as they are done


class DecodedPieces:
    """What a text model said of each batch of trials, in a file that lives until all of them are decoded and drawn.

    The file's name is a digest of all that decides what is said: weights, prompt, EEG tokens or samples, the batches,
    this code, and `settings`. So nothing is taken over from another run.

    chosen : sequence of int. Trials of `dataset` in the order in which they are decoded.
    rank : int. Which of several processes that share the work.
    settings : what else decides: precision, device, batch size, …
    """

    def __init__(
        self, folder: Path, model: EEGLanguageModel, dataset: TrialDataset, chosen: Sequence, rank: int = 0, **settings
    ):
        digest = hashlib.sha256(f"{code_digest()} {fingerprint(model)}".encode())
        read = dataset.changes([dataset.trials[index] for index in chosen])
        asked = [model.before_ids.tolist(), model.after_ids.tolist(), read, model.mirror is not None, settings]
        digest.update(json.dumps(asked, sort_keys=True).encode())
        for index in chosen:
            trial = dataset.trials[index]
            tokens = b"" if dataset.tokens is None else as_bytes(dataset.tokens[index])
            digest.update(f"{trial.key} {trial.checksum} ".encode() + tokens)
        self.path = folder / f".decoded-{rank}-{digest.hexdigest()[:24]}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        for other in set(folder.glob(f".decoded-{rank}-*.jsonl")) - {self.path}:
            other.unlink(missing_ok=True)
        self._done = self._read()
        if self._done:
            print(f"{len(self._done)} batches were decoded by a run that was interrupted; going on behind them")

    def get(self, number: int) -> list | None:
        """What was kept of a batch; None where it has to be decoded."""
        return self._done[number] if number < len(self._done) else None

    def add(self, decoded: list) -> None:
        """Keep the next batch, for JSON; it is on the disk when this returns."""
        append(self.path, _line(len(self._done), decoded))
        self._done.append(decoded)

    def _read(self) -> list[list]:
        """The batches that are whole; what a run was writing when it died is cut off."""
        done, whole, raw = [], b"", self.path.read_bytes() if self.path.is_file() else b""
        for line in raw.splitlines(keepends=True):
            try:
                decoded = json.loads(line)[1]
                if line != _line(len(done), decoded):
                    break
            except (ValueError, LookupError, TypeError, RecursionError):
                break
            done.append(decoded)
            whole += line
        if whole != raw:
            with written_whole(self.path) as unfinished:
                unfinished.write_bytes(whole)
        return done


def _line(number: int, decoded: list) -> bytes:
    return json.dumps([zlib.crc32(json.dumps([number, decoded]).encode()), decoded]).encode() + b"\n"

"""Checkpoints of finetune_eeg_to_clip.py, and published ones, brought back: trials as they were read, model, people."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets.description import DatasetDescription
from datasets.repetitions import Averages, Group, repetitions, with_shuffled_images
from datasets.splits import check_protocol, protocol_named
from datasets.store import description_of_store
from datasets.trials import TrialDataset, part_as_trained
from models.eeg_embedding import EEGEmbedding
from models.loading import building, built
from models.published import PUBLISHED, from_published, own_names
from stages import TARGETS
from stages.checkpoints import HINT, read_run_checkpoint
from stages.retrieval import embed
from stages.tokens import encoder_for, with_features
from utils.checkpoints import fingerprint, read_checkpoint, unwrapped
from utils.errors import UserError, loading
from utils.processes import Processes

# what a name in one of NICE's two files begins with → the part's name
NICE_FILES = {"0.tsconv": "enc_eeg.", "1.fn.": "proj_eeg."}


@dataclass
class ClipRun:
    """A trained model and the trials that it is asked about.

    model : EEGEmbedding, or a published network called as it is.
    people : list of str. Of the model's table; others are strangers to it.
    name : str. Of the run's folder.
    """

    name: str
    checkpoint: dict
    model: torch.nn.Module
    dataset: TrialDataset
    people: list[str]

    @property
    def description(self) -> DatasetDescription:
        return self.dataset.description

    @property
    def images(self) -> list[str]:
        """Of its trials, each once, in alphabetical order."""
        return sorted({trial.image for trial in self.dataset.trials})


def open_clip_run(
    place: Path, datasets_dir: str, split: str, foundation: str, cache_dir: str | None, device: torch.device
) -> ClipRun:
    """The best epoch of a run (or a checkpoint that is named), and the trials of a split, read as in training.

    Raises UserError if the checkpoint is damaged or of another kind, the store is of other trials, or a test image was
    trained on.
    """
    path, checkpoint = read_run_checkpoint(place, "embedding")
    if checkpoint["target"] not in list(TARGETS):
        raise UserError(f"{path} has the target {checkpoint['target']!r}; {HINT}")
    description = description_of_store(datasets_dir, checkpoint["dataset"])
    if not description.parts:
        raise UserError(f"{path} is of {description.name}, whose trials have no images; {HINT}")
    protocol, granularity = check_protocol(checkpoint["protocol"]), checkpoint["granularity"]
    dataset = TrialDataset(datasets_dir, split, protocol, description, granularity=granularity)
    if list(dataset.description.classes) != checkpoint["classes"]:
        raise UserError(f"{path} was trained on other classes than {dataset.store.path} has")
    dataset = part_as_trained(dataset, checkpoint, path)
    lists = {"clip_features": str, "clip_layer": int, "blur": (int, float)}
    for field, kind in lists.items():  # of a run of before they existed: none
        values = checkpoint.get(field) or []
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise UserError(f"{path} is damaged: {field} is no list of {'names' if kind is str else 'numbers'}; {HINT}")
    if absent := checkpoint.get("absent"):
        print(f"notice: {path}: trials of {len(absent)} images are left out, which had no target in training")
        dataset = dataset.without(set(absent))
    check_trials(dataset, checkpoint, path)
    if checkpoint["shuffled"]:
        dataset = with_shuffled_images(dataset, checkpoint["seed"])
    trained_on = {trial.image for trial in dataset.trials} & set(checkpoint["seen"])
    if trained_on and split == "test" and not protocol_named(protocol)[0].repeats_images:
        raise UserError(f"{path} was trained or validated on {sorted(trained_on)[0]}, which would be a test image now")
    with loading(str(path), HINT), building(str(path), path):
        model = built(EEGEmbedding, checkpoint["settings"], checkpoint["model"])
    if model.reads == "tokens":
        encoder = encoder_for(dataset, checkpoint["settings"]["name"], foundation, seed=checkpoint["seed"])
        if fingerprint(encoder) != checkpoint["encoder_fingerprint"]:
            raise UserError(f"{path} was trained on the features of another encoder than {foundation}")
        splits, _ = with_features({"": dataset}, encoder, True, checkpoint["token_pooling"], cache_dir, device)
        dataset = splits[""]
    else:
        dataset = dataset.prepared(model.prepare)
    return ClipRun(place.name or "run", checkpoint, model.eval().to(device), dataset, checkpoint["people"])


def open_like(
    place: Path,
    first: ClipRun,
    wanted: list[Group],
    target: str,
    foundation: str,
    cache_dir: str | None,
    device: torch.device,
) -> tuple[ClipRun, list[Group]]:
    """A further run on the trials of the first one, and its groups of them.

    Raises UserError where it is towards another target, of other trials, or trained under another protocol.
    """
    split, store = first.dataset.mode, str(first.dataset.store.path)
    run = open_clip_run(place, store, split, foundation, cache_dir, device)
    if run.checkpoint["target"] != target:
        raise UserError(f"{place} was trained towards {run.checkpoint['target']}; expected --target {target}")
    for what in ("protocol", "granularity"):  # else one may have been trained on whom the other never saw
        if run.checkpoint[what] != first.checkpoint[what]:
            was = f"{what} {run.checkpoint[what]}, {first.name} under {first.checkpoint[what]}"
            raise UserError(f"{place} was trained under {was}; train both alike")

    def keys(of_run: ClipRun, group: Group) -> frozenset[str]:  # a control gives trials other images, but no other keys
        return frozenset(of_run.dataset.trials[k].key for k in group.trials)

    group_of = {keys(run, group): group for group in repetitions(run.dataset)}
    if lacking := [group for group in wanted if keys(first, group) not in group_of]:
        where = f"{lacking[0].subject}, {lacking[0].image}"
        raise UserError(f"{place} keeps other trials for its {split} than {first.name} ({where}); train both alike")
    return run, [group_of[keys(first, group)] for group in wanted]


def open_runs(
    places: Sequence[str],
    datasets_dir: str,
    split: str,
    foundation: str,
    cache_dir: str | None,
    device: torch.device,
    n: int,
) -> list[tuple[ClipRun, list[Group]]]:
    """The runs that are drawn from, and of each its groups of the same `n` stimuli, spread evenly.

    Raises UserError where there are none, or the runs were not trained towards the same targets on the same trials.
    """
    opened = foundation, cache_dir, device
    first = open_clip_run(Path(places[0]), datasets_dir, split, *opened)
    groups = repetitions(first.dataset)
    if not groups:
        raise UserError(f"{datasets_dir} has no {split} trials under {first.checkpoint['protocol']}")
    chosen = [groups[k] for k in torch.linspace(0, len(groups) - 1, min(n, len(groups))).round().int().tolist()]
    further = [open_like(Path(place), first, chosen, first.checkpoint["target"], *opened) for place in places[1:]]
    for run, _ in further:
        for what in ("shuffled", "clip", "clip_layer", "blur", "image_model"):
            if (was := run.checkpoint.get(what)) != (of_first := first.checkpoint.get(what)):
                raise UserError(f"{run.name} has {what} {was}, {first.name} {of_first}; name runs that agree in it")
    return [(first, chosen), *further]


def check_trials(dataset: TrialDataset, checkpoint: dict, path: Path) -> None:
    """Raise UserError where the trials, as they are read, are others than those that a checkpoint was trained on."""
    now = dataset.n_times, dataset.sfreq, dataset.units, list(dataset.montage.electrodes)
    was = checkpoint["n_times"], checkpoint["sfreq"], checkpoint["units"], checkpoint["settings"].get("electrodes")
    if now != was:
        electrodes = len(was[3] or [])
        raise UserError(
            f"{path} was trained on trials of {was[0]} samples at {was[1]} Hz, {was[2]}, {electrodes} electrodes; "
            f"{dataset.store.path} has {now[0]} at {now[1]} Hz, {now[2]}, {len(now[3])}"
        )


def clip_part(
    run: ClipRun,
    groups: Sequence[Group],
    device: torch.device,
    batch_size: int = 256,
    processes: Processes | None = None,
) -> torch.Tensor:
    """(N, D) embeddings of groups in CLIP's space; of a run towards structure the first D of what it gives."""
    if not groups:
        return torch.zeros(0, run.checkpoint.get("clip_width") or run.model.out)
    outputs = embed(run.model, run.dataset, groups, run.people, device, batch_size, processes)
    return outputs[:, : run.checkpoint.get("clip_width")]


def open_published(
    paths: Sequence[Path], name: str, kind: str, dataset: TrialDataset, people: Sequence[str], device: torch.device
) -> tuple[torch.nn.Module, TrialDataset]:
    """A published checkpoint as a model called like `EEGEmbedding`, and the trials as it reads them.

    paths : sequence of Path. NICE's encoder and projection are two files.
    people : sequence of str. Of the published table, by number.
    Raises UserError if the files are none of that model, or read trials of another shape.
    """
    if name not in PUBLISHED:
        raise UserError(f"{name}: no published model here; there are {', '.join(PUBLISHED)}")
    known, state = own_names(name), {}

    def is_own(key: str) -> bool:
        return known(key) or key.startswith(tuple(NICE_FILES))

    for path in paths:
        keys = unwrapped(read_checkpoint(path), is_own, str(path))
        part = next((ours for theirs, ours in NICE_FILES.items() if any(key.startswith(theirs) for key in keys)), "")
        state |= {part + key: value for key, value in keys.items()}
    try:
        model = from_published(name, state, kind).eval().to(device)
    except UserError as error:
        raise UserError(f"{' and '.join(map(str, paths))}: {error}") from None
    # models are called with people; one that takes no people gets none
    model.register_forward_pre_hook(lambda net, inputs: inputs if net.takes_people else inputs[:1])
    dataset = dataset.prepared(EEGEmbedding.preparing(name, dataset.units))
    if len(dataset):
        first = Averages(dataset, repetitions(dataset)[:1], people)[0]
        x, ids = first["x"][None].to(device), torch.tensor([first["subject"]], device=device)
        hint = "choose --channels, another store, or for a model of joint training one of its people"
        what = f"{paths[0]} does not read trials of {tuple(x.shape[1:])} electrodes × samples"
        with loading(what, hint), torch.no_grad():
            model(x, ids)
    return model, dataset

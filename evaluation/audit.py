"""Looks for what a shuffled-label control cannot see: people, trials or pictures in two splits, labels that no brain
put there, an epoch chosen on test, files that do not belong together.

Each check gives findings: ok, notice, cannot (what it cannot check) or BREACH. `store_findings` reads a store,
`findings` a store and the runs on it. What is checked of people, copies, amplitudes, probes, images, runs and models
stands in a file each.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets.description import SPLITS, DatasetDescription
from datasets.splits import Split, promises, protocol_named, without_split
from datasets.trials import TrialDataset, part_of
from evaluation.audit_amplitudes import amplitude_findings, normalisation_findings, whitening_findings
from evaluation.audit_copies import changed_copy_findings, copy_findings
from evaluation.audit_images import caption_findings, image_findings
from evaluation.audit_models import decoded_findings, target_findings, token_findings, used_findings
from evaluation.audit_people import key_findings, likeness_findings, people_findings, seen_findings
from evaluation.audit_probes import probe_findings
from evaluation.audit_run import decoding_findings, run_findings
from evaluation.decoded_runs import Run
from evaluation.findings import Finding
from evaluation.summaries import summarise
from utils.errors import UserError

CANNOT = [
    "a label that is written into one electrode's variance or rhythm: "
    "it looks like the band power that decoders live on",
    "amplitudes that were made equal by medians or quantiles of all trials, or made equal and then clipped",
    "a label in the fifth and higher bits of single samples, or in a filter above 45 Hz that differs by class",
    "sessions, or parts of them, under another name of the same person",
    "copies with more other noise than signal, of less than a quarter of the electrodes (half, in another order), "
    "less than half of the frequencies, shifted by a quarter of the trial and more, at another rate, in pieces, "
    "or of electrodes that were mixed; most copies with another order of electrodes that are shifted by more than a "
    "tenth as well; a filter that reaches from one trial into the next",
    "pictures of one thing that differ by more than size, format, turning by quarters or a fifth of their edges, "
    "in other colours or grey, cut at one side, or smaller than 20 x 20 pixels",
    "an identifier in captions that is written in another way: a number by itself, from another start, in words; "
    "a class named in other words than its name",
    "whitening by covariances that were shrunk by so much that none is near the identity",
    "rows, results and checkpoints that were all changed alike",
    "whether the test people were looked at before this store was made, "
    "or the settings were chosen by other runs' test scores",
]


def splits_of(store, description: DatasetDescription, protocol: str) -> Split:
    """The splits as a protocol makes them, unchecked; trials that the published splits do not know stand apart."""
    named, person = protocol_named(protocol)
    splits = named.split(store, description, person)
    apart = without_split(store, splits) if named.complete else []
    return splits | ({"no split": apart} if apart else {})


def store_findings(store, splits: Split, kept_apart: Sequence[str] = ()) -> Iterator[Finding]:
    """All checks of a store's trials. `kept_apart`: what the protocol promises to keep apart (`splits.promises`)."""
    trials = [trial for of_split in splits.values() for trial in of_split]
    yield from key_findings(store.trials)
    mode_of = {trial.key: mode for mode, of_split in splits.items() for trial in of_split}
    summaries = summarise(store, trials, mode_of)
    yield from copy_findings(store, splits, trials, summaries.sketch)
    yield from changed_copy_findings(store, splits, trials, summaries)
    for promise in kept_apart:
        yield from likeness_findings(splits, promise, trials, summaries)
    yield from amplitude_findings(store, trials, summaries)
    yield from normalisation_findings(summaries)
    yield from whitening_findings(store, summaries)
    yield from probe_findings(trials, summaries)


def findings(
    store,
    description: DatasetDescription,
    protocols: Sequence[str],
    runs: Sequence[Run],
    protocol_of: dict[str, str],
    images_dir: Path | None,
    captions: Path | None,
    cache_dir: str | None,
    device,
) -> Iterator[Finding]:
    """All checks of a store under some protocols, and of the runs on it.

    protocol_of : dict. Of each run by its name.
    images_dir, captions : Path, optional. What the people saw, and what captioners say of it; where nobody names them,
        beside the store.
    cache_dir : str, optional. Where tokens and targets are kept. device : torch.device. Where some are made anew.
    """
    splits = {protocol: splits_of(store, description, protocol) for protocol in protocols}
    classes = description.classes or store.meta.get("classes") or ()  # of some datasets the store says them
    if odd := sum(trial.label >= len(classes) for trial in store.trials):
        yield Finding("BREACH", "labels", f"{odd} trials have a label of none of the {len(classes)} classes")
    for protocol, of_split in splits.items():
        kept_apart = promises(description, protocol)
        for promise in kept_apart:
            check = seen_findings if promise in ("concept", "image") else people_findings
            yield from check(of_split, promise)
        yield from image_findings(of_split, images_dir, not {"concept", "image"} & set(kept_apart))
        if captions is not None:
            yield from caption_findings(captions, classes, of_split)
    first = next(iter(splits))
    yield from store_findings(store, splits[first], promises(description, first))
    for run in runs:
        protocol = protocol_of[run.name]
        yield from run_findings(run, store, splits[protocol])
        try:
            datasets = _datasets(run, store, description, protocol)
        except UserError as error:  # trials that are not kept apart cannot be opened
            yield Finding("cannot", run.name, f"its cached tokens and targets were not looked at: {error}")
            continue
        there = [dataset for dataset in datasets.values() if len(dataset)]
        yield from token_findings(run, there, cache_dir, device)
        yield from target_findings(run, datasets, images_dir, cache_dir, device)
        yield from decoded_findings(run, description, store, cache_dir, device)
        yield from used_findings(run, there)
    yield from decoding_findings(runs)
    for words in CANNOT:
        yield Finding("cannot", "by design", words)


def _datasets(run: Run, store, description: DatasetDescription, protocol: str) -> dict[str, TrialDataset]:
    """The trials by split, as a run reads them; UserError where they are not kept apart, or have no such part."""
    part, granularity = part_of(run.argument), run.argument.get("granularity")
    if description.parts and part.get("window"):  # counted from the onset, and not from the first stored sample
        start = float(store.meta.get("preprocessing", {}).get("tmin", 0.0))
        part["window"] = [second - start for second in part["window"]]
    if part.get("regions"):
        part["regions"] = description.named_channels(part["regions"])
    splits = {mode: TrialDataset(store.path, mode, protocol, description, store, granularity) for mode in SPLITS}
    return {mode: dataset.part(**part) for mode, dataset in splits.items()}

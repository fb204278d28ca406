"""What models make anew of a run's trials: cached tokens and targets, decoded answers, what alignment has used."""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np

from datasets.alignment import ADAPTATIONS, ALIGNMENTS, used_together
from datasets.recording import origin
from datasets.repetitions import averages, repetitions, some_repetitions, with_shuffled_images
from datasets.trials import TrialDataset
from evaluation.decoded_runs import Run, decoded_with, recorded_at
from evaluation.findings import Checked, of_run
from models import choose
from models.clip_targets import compared
from stages import TARGETS, checkpoints
from stages.clip_runs import open_clip_run
from stages.decoding import DecodingSettings, decode_embeddings, decode_text, read_mapper_runs, read_text_runs
from stages.retrieval import embed
from stages.rows import Readout, Row
from stages.targets import TargetSettings, images_of, without_lacking
from stages.tokens import TokenCache, encoder_for
from utils.checkpoints import fingerprint, read_kept
from utils.errors import UserError
from utils.paths import cache_folder
from utils.processes import Processes
from utils.seeds import some_of

SAME_TOKENS = 1e-2  # of their RMS: other devices and precisions differ by less
DECODED_ANEW = 16  # trials of a text or mapper run
ALL_ANEW = 1_000  # trials of which all are, where answers depend on those of other trials of the session
SAME_PROBABILITY = 0.05  # other devices and precisions differ by less
ROUNDING = 0.1  # share of answers that another device's or library's rounding may turn
RUNS_FAULTS = (
    UserError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
)  # what a run's own record may make of it


@of_run
def token_findings(run: Run, datasets: Sequence[TrialDataset], cache_dir: str | None, device) -> Checked:
    """Whether the cache's tokens are what the encoder makes of these splits: a few of each file are encoded anew."""
    asked, expected = run.argument, run.depends_on.get("encoder")
    if not isinstance(expected, str) or any(map(asked.get, ("no_cache_features", "train_encoder", "encoder_lora"))):
        return
    foundation = asked.get("foundation_dir") if asked.get("use_pretrained_weights", True) else None
    unknown = "whether the cached tokens are of this store"
    try:
        settings = str(asked.get("encoder")), foundation, bool(asked.get("allow_partial")), int(asked.get("seed", 0))
        encoder = encoder_for(datasets[0], *settings)
    except (UserError, KeyError, ValueError, TypeError) as error:
        yield "cannot", f"{unknown}: the encoder cannot be loaded ({error})"
        return
    if not encoder.pretrained:
        return
    if fingerprint(encoder) != expected:
        yield "cannot", f"{unknown}: {foundation} is another encoder than the run's"
        return
    pooling = str(asked.get("token_pooling") or "region")
    cache = TokenCache(cache_dir or asked.get("cache_dir"), encoder, datasets[0].montage, pooling)
    files = {path: (dataset, trials) for dataset in datasets for path, trials in cache.files(dataset).items()}
    files = {path: part for path, part in files.items() if path.is_file()}
    wrong = compared = 0
    for path, (dataset, trials) in files.items():
        kept, chosen = read_kept(path), some_of(range(len(trials)), DECODED_ANEW)
        fresh = cache.encode(dataset, [trials[k] for k in chosen], device)
        compared += len(chosen)
        same = kept is not None and kept["tokens"].shape == (len(trials), *fresh.shape[1:])
        if not same or (kept["tokens"][chosen] - fresh).abs().max() > SAME_TOKENS * fresh.square().mean().sqrt():
            yield "BREACH", f"{path.name} in the token cache is not what the encoder makes of this store"
            wrong += 1
    if not files:
        yield "cannot", "no tokens of this store and encoder are in the cache"
    elif not wrong:
        yield "ok", f"{compared} trials of {len(files)} files of the token cache were encoded anew and agree"


@of_run
def used_findings(run: Run, datasets: Sequence[TrialDataset]) -> Checked:
    """Whether a run has used of the test person what its rows say, and causal alignment nothing of later trials."""
    test = next((dataset for dataset in datasets if dataset.mode == "test"), None)
    if test is None or not run.rows[0].uses:
        yield "cannot", "what was used of the test person: its rows do not say it"
        return
    if "align" not in run.argument and _decoder_of(run)[0]:  # of a generating script: the checkpoint has the settings
        yield "cannot", "what was used of the test person, by its settings: its record has none, its checkpoint has"
        return
    adapt = ADAPTATIONS.get(str(run.argument.get("adapt", "none")), ADAPTATIONS["none"])
    ranked = "none" if run.argument.get("geometry", "plain") == "plain" else "session"
    settings, said = used_together(*test.uses.split("; "), adapt.uses, ALIGNMENTS[ranked].uses), run.uses
    if "ensemble" in run.record:
        yield "cannot", f"whether an ensemble used of the test person what its rows say, {said!r}: audit its runs"
    elif settings != said:
        yield "BREACH", f"its rows say {said!r} was used of the test person, its settings {settings!r}"
        return
    else:
        yield "ok", f"used of the test person: {said}, as its settings say"
    if ALIGNMENTS[test.align].causal:
        for person in sorted({trial.subject for trial in test.trials}):
            order = sorted((trial for trial in test.store.trials if trial.subject == person), key=origin)
            aligned = test.aligning(order)
            for place in sorted({1, len(order) // 2, len(order) - 1}):  # with nothing behind it, each is aligned alike
                until = test.aligning(order[:place])
                if any(not np.array_equal(until[trial.key], aligned[trial.key]) for trial in order[:place]):
                    yield "BREACH", f"trials before {order[place].key} are aligned by what comes after"
                    return
        yield "ok", "no trial is aligned by a later one: bit-equal without them"


# ---------------------------------------------------------------- targets of seen images


@of_run
def target_findings(
    run: Run, splits: Mapping[str, TrialDataset], images_dir: Path | None, cache_dir: str | None, device
) -> Checked:
    """Whether a run of seen images was trained towards what its model makes of their pictures, sentences or captions.

    Some targets of each file of the cache are made anew, and all of the cache must be what the run's record says. Then
    its best checkpoint answers the test trials anew.
    """
    if run.argument.get("target") not in list(TARGETS):
        if any(row.image for row in run.rows) and not _decoder_of(run)[0] and run.argument.get("model") is None:
            yield "cannot", "whether its answers are a checkpoint's: its record says no target"
        return
    asked, store, files = dict(run.argument), splits["test"].store, []
    asked["images_dir"] = images_dir or Path()
    asked["cache_dir"] = cache_folder(cache_dir or asked.get("cache_dir"), store.path)
    try:
        for name in ("captions", "structure_vae", "clip_model", "image_model"):
            place = run.recorded_place(name)
            asked[name] = str(place) if place and place.exists() else asked.get(name)
        settings = TargetSettings(**{f.name: asked[f.name] for f in fields(TargetSettings) if f.name in asked})
        target = choose(TARGETS, asked["target"])(settings)
        splits, _, _ = without_lacking(splits, target.lacking(images_of(splits)))
        if run.is_control:
            splits = {mode: with_shuffled_images(dataset, int(asked["seed"])) for mode, dataset in splits.items()}
        with compared(files):
            target.build(splits, averages(splits["train"], int(asked["average_train"])))
        lacking = ""
    except RUNS_FAULTS as error:
        lacking = str(error)
    if wrong := [path.name for path, agrees in files if not agrees]:
        yield "BREACH", f"{wrong[0]} in the target cache is not what its model makes of these pictures"
        return
    if lacking:
        yield "cannot", f"whether it was trained towards what its model makes of the pictures: {lacking}"
        return
    recorded = [value for name, value in run.depends_on.items() if name.startswith("set of targets")]
    same = not files or recorded in ([], [target.digest])
    if files and same:
        yield "ok", f"some targets of {len(files)} files of the cache were made anew and agree; all are the run's"
    answers = [("cannot", "whether a checkpoint gives these answers: its folder has no results.json")]
    if (run.folder / "results.json").is_file():
        try:
            foundation = str(asked.get("foundation_dir"))
            opened = open_clip_run(run.folder, str(store.path), "test", foundation, cache_dir, device)
            groups = some_repetitions(repetitions(opened.dataset), asked.get("test_repetitions"), int(asked["seed"]))
            outputs = embed(opened.model, opened.dataset, groups, opened.people, device)
            answers = list(_agree(run, target.rows(outputs, opened.dataset, groups)[0]))
        except RUNS_FAULTS as error:
            answers = [("cannot", f"whether its checkpoint gives these answers: {error}")]
    if not same:
        words = "it was trained towards other targets than its model makes of these pictures"
        if answers and answers[0][0] == "ok":
            yield "notice", f"{words} here: on another device, perhaps, since its answers are the same"
        else:
            yield "BREACH", words
    yield from answers


# ---------------------------------------------------------------- answers


@of_run
def decoded_findings(run: Run, description, store, cache_dir: str | None, device) -> Checked:
    """Whether the checkpoint of a text or mapper run, or of what was decoded with one, gives the answers of its rows.

    Some trials are decoded anew, drawn at random: nobody can know which ones.
    """
    unknown = "whether its checkpoint gives these answers"
    kind, place = _decoder_of(run)
    if not kind:
        if run.argument.get("model") is not None:
            yield "cannot", f"{unknown}: a baseline keeps no model"
        return
    if not isinstance(place, str):
        yield "cannot", f"{unknown}: they are the mean of several runs"
        return
    read, decode = DECODERS[kind]
    asked = run.argument
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            found = read([str(recorded_at(place))])
            chosen = _drawn(run, str(found[0].content.get("adapt", "none")))
            settings = DecodingSettings(
                datasets_dir=str(store.path), split="test", protocol=found[0].content["protocol"],
                num_samples=len(chosen), output_dir=folder, foundation_dir=asked.get("foundation_dir"),
                use_pretrained_weights=bool(asked.get("use_pretrained_weights", True)),
                allow_partial=bool(asked.get("allow_partial")),
                encoder_seed=int(asked.get("encoder_seed", asked.get("seed", 0))),
                cache_dir=cache_dir, no_cache_features=True, batch_size=8,
                readout="head" if kind == "mapper" else None, no_quantize=bool(asked.get("no_quantize")),
                max_new_tokens=int(asked.get("max_new_tokens", 64)), chosen=chosen,
            )  # fmt: skip
            as_read = checkpoints.as_trained(description, found[0].path, found[0].content)
            rows = decode(found, as_read, settings, Processes(device))[0]
    except RUNS_FAULTS as error:
        yield "cannot", f"{unknown}: {error}"
    else:
        said = run.rows[0].uses
        if said and rows[0].uses != said:
            words = f"{said!r} was used of the test person, its checkpoint {rows[0].uses!r}"
            yield "BREACH", f"its rows say {words}"
        yield from _agree(run, rows)


DECODERS = {
    "text": (partial(read_text_runs, lora_dir=None), decode_text),
    "mapper": (read_mapper_runs, decode_embeddings),
}


def _decoder_of(run: Run) -> tuple[str, object]:
    """The kind of checkpoint that gave a run's answers, and its place: several of an ensemble; empty: there is none."""
    if (run.folder / "results.json").is_file():
        there = (kind for kind in DECODERS if any(run.folder.glob(checkpoints.KINDS[kind].name.format("*"))))
        return next(there, ""), str(run.folder)
    return decoded_with(run.record)


def _drawn(run: Run, adapt: str) -> list[int]:
    """Places of the trials that are decoded anew; all of them where answers depend on those of other trials.

    Raises UserError where these are too many, or each trial is adapted to otherwise.
    """
    places = [row.index for row in run.rows]
    if adapt == "none":
        return some_of(places, DECODED_ANEW)
    if ADAPTATIONS.get(adapt, ADAPTATIONS["im"]).changes != "answers" or len(places) > ALL_ANEW:
        raise UserError(f"--adapt {adapt}, {len(places)} trials")
    return places


def _agree(run: Run, rows: Sequence[Row]) -> Checked:
    """Whether rows that were decoded anew have the answers of the run's, but for a few that rounding may turn."""
    ours = {row.index: row for row in rows}
    pairs = [(row, ours[row.index]) for row in run.rows if row.index in ours]
    if moved := min(len(rows), len(run.rows)) - sum(origin(a) == origin(b) for a, b in pairs):
        yield "BREACH", f"{moved} of its rows have a number that is another trial's, or nobody's"
        return
    if lacking := {name for a, b in pairs for name in set(a.readouts) - set(b.readouts)}:
        yield "cannot", f"whether its checkpoint gives {', '.join(sorted(lacking))}: no read-out of its own"
    common = [[(of, b.readouts[name]) for name, of in a.readouts.items() if name in b.readouts] for a, b in pairs]
    differs = [any(_other(*both) for both in of_trial) for of_trial in common]
    wrong, n = sum(differs), len(pairs)
    if wrong > max(1, ROUNDING * n):
        yield "BREACH", f"{wrong} of {n} trials that its checkpoint decoded anew have other answers than its rows"
    elif wrong:
        yield (
            "notice",
            f"its checkpoint decoded {n} trials anew, and gives {wrong} another answer: a device's rounding?",
        )
    elif n:
        yield "ok", f"its checkpoint decoded {n} trials anew, and {n} answers agree"


def _other(a: Readout, b: Readout) -> bool:
    """Whether two answers differ: in label, rank, chance, or by more than rounding in their probabilities."""
    p, q = a.probabilities or (), b.probabilities or ()
    far = len(p) == len(q) and any(abs(x - y) > SAME_PROBABILITY for x, y in zip(p, q, strict=True))
    return (a.label, a.rank) != (b.label, b.rank) or abs(a.chance - b.chance) > 1e-6 or far

"""A run's files against the store and against each other: rows, results, epochs, checkpoints."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from math import isclose
from pathlib import Path

import torch

from datasets.recording import Trial, origin
from datasets.repetitions import shuffled_images
from datasets.splits import Split, protocol_named
from datasets.trials import shuffled_labels
from evaluation.decoded_runs import Run, decoded_with, description_of
from evaluation.findings import Checked, Finding, of_run
from evaluation.tables import numbers
from stages.cards import SCORES_HEAD, score_lines
from stages.checkpoints import wrong_fields
from stages.runs import best_epoch, is_history
from stages.scores import score_rows
from utils.checkpoints import CONFIG, WEIGHTS, read_checkpoint
from utils.errors import UserError
from utils.files import plain_bytes, read_csv, read_json
from utils.limits import MAX_JSON, MAX_TEXT

KINDS = ("projection", "mapper", "encoder")  # what checkpoints are called after
# settings that a checkpoint and the run's record both have
OF_BOTH = "protocol granularity target objective window regions band align clip_layer blur token_pooling seed".split()
OF_TRAINING = ("results.json", "metrics.jsonl", "last.pth")


@of_run
def run_findings(run: Run, store, splits: Split) -> Checked:
    """All checks of a run's folder, against the store that it says it was made from."""
    yield from chain(_made_from(run, store), _test_trials(run, splits), _answers(run))
    _, checkpoint = decoded_with(run.record)
    if checkpoint:
        yield "ok", f"decoded with {checkpoint}"
    if not checkpoint or any((run.folder / name).exists() for name in OF_TRAINING):
        yield from chain(_scores(run), _tables(run), _epoch(run, store, splits))


def _made_from(run: Run, store) -> Checked:
    """Whether the run was made from this store and this list of its trials."""
    if run.encoder_note:
        yield "notice", f"its encoder's checkpoint: {run.encoder_note}; the rest of the encoder is random"
    depends = run.record.get("depends_on", {"store": run.record["store"]} if "store" in run.record else None)
    if not isinstance(depends, dict):
        yield "cannot", "without its run.json nobody knows what it was made from"
        depends = {}
    for name, now in (("store", store.fingerprint), ("list of trials", store.listed)):
        if name not in depends:
            if name == "store" or "store" not in run.record:
                yield "cannot", f"its run.json does not say from which {name} it was made"
        elif depends[name] == now:
            yield "ok", f"made from this {name}"
        else:
            yield "BREACH", f"it was made from another {name}: {str(depends[name])[:16]} and not {str(now)[:16]}"


def _test_trials(run: Run, splits: Split) -> Checked:
    """Whether all test trials are decoded and no others, with the store's labels; of seen images, with its images."""
    by_image = any(row.image for row in run.rows)  # candidates are counted anew there, and repetitions averaged
    labels = {origin(trial): trial.image if by_image else trial.label for trial in splits["test"]}
    others = {origin(trial) for name in ("train", "val") for trial in splits[name]}
    decoded = {origin(row): row.image if by_image else row.true_label for row in run.rows}
    foreign, unknown = set(decoded) & others - set(labels), set(decoded) - set(labels) - others
    if foreign:
        yield "BREACH", f"{len(foreign)} of its decoded trials are training or validation trials"
    if unknown:
        yield "BREACH", f"{len(unknown)} of its decoded trials are not in this store"
    expected, place = labels, "in the store"
    if run.is_control:
        seed, trials = run.argument.get("seed"), splits["test"]
        seed = seed if type(seed) is int and seed >= 0 else 0
        new = shuffled_images(trials, [t.label for t in trials], seed, True)[0] if by_image else trials
        new = [t.image for t in new] if by_image else shuffled_labels(trials, seed)
        expected, place = dict(zip(map(origin, trials), new, strict=True)), f"a control of seed {seed} gives them"
    changed = sum(expected[trial] != label for trial, label in decoded.items() if trial in expected)
    if changed:
        what = "image" if by_image else "label"
        yield "BREACH", f"{changed} of its decoded trials have another {what} than {place}"
    wanted, there = set(labels), set(decoded)
    if by_image:  # a row stands for all repetitions of an image
        wanted, there = ({(trial[0], image) for trial, image in images.items()} for images in (labels, decoded))
    if not foreign and not unknown:
        what = "images" if by_image else "trials"
        yield "notice" if wanted - there else "ok", f"{len(there)} of {len(wanted)} test {what} are decoded"


def _scores(run: Run) -> Checked:
    """Whether the test was decoded once, and results.json has the scores of the decoded trials."""
    files = sorted(path.name for path in run.folder.glob("*.jsonl*") if "test" in path.name)
    if len(files) > 1:
        yield "BREACH", f"the test was decoded more than once: {', '.join(files)}"
    try:
        tested = read_json(run.folder / "results.json")["test"].items()
    except (UserError, KeyError, TypeError, AttributeError):
        yield "cannot", "results.json is missing or damaged: nobody can tell what it said its scores were"
        return
    own = {name: score.as_dict() for name, score in score_rows(run.rows).items()}
    if lacking := sorted(set(own) - {name for name, _ in tested}):
        yield "BREACH", f"results.json has no score of {', '.join(lacking)}, and its decoded trials have"
    for name, scored in tested:
        words = f"results.json says other scores of {name} than its decoded trials"
        if not isinstance(scored, dict) or "measure" not in scored and name not in own:
            yield "BREACH", f"{words}: they have none"
        elif name not in own:
            yield "cannot", f"results.json says {name}, which no row holds"
        elif other := [k for k, value in own.get(name, {}).items() if _differs(scored.get(k, value), value)]:
            yield "BREACH", f"{words}: {', '.join(other)}"


def _differs(a: object, b: object) -> bool:
    """Whether two values of JSON are others, but for rounding."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) != set(b) or any(_differs(a[key], b[key]) for key in a)
    both = all(type(value) in (int, float) for value in (a, b))
    try:
        return not isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) if both else a != b
    except OverflowError:  # one has hundreds of digits
        return a != b


def _tables(run: Run) -> Checked:
    """Whether the model card, and a results.csv in the run's folder or beside it, have the scores of the rows."""
    card, readouts = run.folder / "README.md", score_rows(run.rows)
    text = plain_bytes(card, MAX_TEXT).decode(errors="replace") if card.is_file() else ""
    lines = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in text.splitlines() if line[:1] == "|"]
    # what is wrong with results.json, `_scores` says
    with suppress(UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        right = {tuple(map(str, line)) for line in score_lines(read_json(run.folder / "results.json"))}
        kept = {line for line in lines if len(line) == len(SCORES_HEAD) and line[0] in ("test", "val")}
        if kept and kept != right:
            names = ", ".join(sorted({f"{line[1]} ({line[0]})" for line in kept ^ right}))
            yield "BREACH", f"README.md, its model card, says other scores of {names} than its decoded trials"
    for path in (run.folder / "results.csv", run.folder.parent / "results.csv"):
        try:
            lines = read_csv(path)
        except UserError as error:
            yield "cannot", f"its scores in a table: {error}"
            continue
        for line in lines:
            of_run, readout = (str(line.get(column)).strip() for column in ("run", "readout"))
            if of_run not in (run.name, run.folder.name) or readout not in readouts:
                continue
            known = numbers(run.rows, readout)
            said = {name: _number(line.get(name)) for name in known if "permuted" not in name}  # those are drawn
            other = [name for name, value in said.items() if value is not None and _differs(value, known[name])]
            if other or said["accuracy"] is None:
                words = f"another {', '.join(other or ['accuracy'])} of {line['readout']}"
                yield "BREACH", f"{path.name} says {words} than its decoded trials"


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _answers(run: Run) -> Checked:
    """Whether each row's answers are those that its own probabilities, ranks and text give."""
    wrong = 0
    for row in run.rows:
        for readout in row.readouts.values():
            p = readout.probabilities
            wrong += p is not None and readout.label >= 0 and p[readout.label] < max(p) - 1e-5
            wrong += readout.rank is not None and (readout.rank == 1) != (readout.label == row.true_label)
    if all("keyword" in row.readouts for row in run.rows) and not run.argument.get("words"):
        with suppress(UserError):
            label_of = description_of(run).keyword_label
            wrong += sum(label_of(row.text) != row.readouts["keyword"].label for row in run.rows)
    if wrong:
        sources = "their own probabilities, ranks or texts"
        yield "BREACH", f"{wrong} answers of its decoded trials are not what {sources} say"


def _epoch(run: Run, store, splits: Split) -> Checked:
    """Whether the epoch was chosen on validation, the test decoded once, and the checkpoint belongs to the run."""
    model, folder, history = run.argument.get("model"), run.folder, None
    try:
        results = read_json(folder / "results.json")
        readout, tested = results["selected_by"], results["best_epoch"]
        if (folder / "metrics.jsonl").is_file():
            history = [json.loads(line) for line in plain_bytes(folder / "metrics.jsonl", MAX_JSON).splitlines()]
            if not is_history(history) or type(tested) is not int or not isinstance(results.get("test"), dict):
                raise ValueError
            best = best_epoch(history, readout)["epoch"]
    except (UserError, ValueError, KeyError, TypeError, OSError, RecursionError):
        yield "cannot", "metrics.jsonl or results.json is missing or damaged: nobody can tell how its epoch was chosen"
        return
    if history is None and model is not None and tested is None:
        yield "ok", f"{model} has no epochs to choose from"
        return
    if history is None:
        yield "cannot", "without its metrics.jsonl nobody can tell how its epoch was chosen"
        return
    with_test = [epoch["epoch"] for epoch in history if any("test" in str(name) for name in epoch)]
    if with_test:
        yield "BREACH", f"test scores stand beside epoch {with_test[0]}: the test was decoded more than once"
    if tested != best:
        yield "BREACH", f"epoch {tested} was tested; by validation ({readout}) it is epoch {best}"
    elif not with_test:
        yield "ok", f"epoch {tested} of {len(history)} was chosen by validation ({readout})"
    yield from _history(history, results, best)
    last = folder / "last.pth"
    if model is not None and not last.is_file() and not any(folder.glob("*_epoch*.pth")):
        return  # a baseline keeps no checkpoints
    state = read_checkpoint(last) if last.is_file() else {}
    if not state:
        yield "cannot", "without its last.pth nobody can tell whether metrics.jsonl is as it was written"
    elif _differs_as_json(state.get("history"), history):
        yield "BREACH", "metrics.jsonl has other epochs or scores than last.pth remembers"
    kinds = KINDS if 0 < tested <= len(history) else ()
    path = next(filter(Path.is_file, (folder / f"{kind}_epoch{tested}.pth" for kind in kinds)), None)
    checkpoint = read_checkpoint(path) if path else {}
    if wrong := wrong_fields(checkpoint):
        yield "BREACH", f"{path.name} is damaged: its {', '.join(wrong)} cannot be right"
    elif path:
        yield from _checkpoint(run, path, checkpoint, store, splits)
        if checkpoint.get("epoch", tested) != tested:
            yield "BREACH", f"{path.name} is of epoch {checkpoint['epoch']}"
        if tested == len(history) and state and not _same_weights(checkpoint, state):
            yield "BREACH", f"{path.name} has other weights than last.pth, of the same epoch"
        second = folder / WEIGHTS
        if second.is_file() and (folder / CONFIG).is_file() and not _same_weights(checkpoint, read_checkpoint(second)):
            yield "BREACH", f"{second.name} has other weights than {path.name}"
    else:
        yield "cannot", f"the checkpoint of epoch {tested} is not there"


def _history(history: Sequence[dict], results: Mapping, best: int) -> Checked:
    """Whether epochs' scores agree with their own counts, and results.json has the validation of the best one."""
    for epoch in history:
        for name, score in epoch["val"].items():
            right, n = score.get("correct"), score.get("n")
            counted = type(right) is type(n) is int and n > 0
            if counted and (not 0 <= right <= n or _differs(right / n, score.get("accuracy"))):
                yield ("BREACH", f"metrics.jsonl: epoch {epoch['epoch']}: {name} is not its {right} right trials")
    tested = history[results["best_epoch"] - 1] if 0 < results["best_epoch"] <= len(history) else history[best - 1]
    if "val" in results and _differs_as_json(results["val"], tested["val"]):
        yield "BREACH", f"results.json has another validation of epoch {tested['epoch']} than metrics.jsonl"


def _differs_as_json(a: object, b: object) -> bool:
    return json.loads(json.dumps(a, default=str, skipkeys=True)) != json.loads(json.dumps(b))


def _same_weights(checkpoint: Mapping, other: Mapping) -> bool:
    """Whether what two files have in common of a trained model is the same; an encoder may be merged in one of them."""
    for part in ("model", "projection", "mapper", "head", "adapter"):
        a, b = checkpoint.get(part), other.get(part)
        for name, value in a.items() if isinstance(a, Mapping) and isinstance(b, Mapping) else ():
            is_there = isinstance(value, torch.Tensor) and isinstance(b.get(name), torch.Tensor)
            if isinstance(value, torch.Tensor) and not (is_there and torch.equal(value, b[name].cpu())):
                return False
    return True


def _checkpoint(run: Run, path: Path, checkpoint: Mapping, store, splits: Split) -> Checked:
    """Whether a checkpoint has seen nothing that tests, says what it has seen, and is of the run's encoder."""
    of_images = path.name.startswith("encoder")
    kind = "image" if of_images else "session"

    def marks(trial: Trial) -> set[str]:
        return {trial.image} if of_images else set(trial.marks.values())

    classes, absent = set(checkpoint.get("classes") or ()), set(checkpoint.get("absent") or ())
    names, some = store.meta.get("classes") or [], run.argument.get("granularity", "all") != "all"
    given = [trial for mode in ("train", "val") for trial in splits[mode]]
    if of_images and some and names and classes <= set(names):
        given = [trial for trial in given if names[trial.label] in classes]
    learnt = [trial for trial in given if not absent & {trial.image}]
    without = run.left_out("train") + run.left_out("val")
    noted = set(map(str, checkpoint.get("seen") or ()))
    if len(given) - len(learnt) > without:
        words = f"{len(given) - len(learnt)} trials as without a picture, and the run's record {without}"
        yield "BREACH", f"{path.name} lists {words}"
    if not noted and any(splits[mode] for mode in ("train", "val")):
        yield "BREACH", f"{path.name} lists nothing as seen, and was trained"
        return
    foreign = [] if of_images else noted - {mark for trial in store.trials for mark in marks(trial)}
    if foreign and run.depends_on.get("list of trials", store.listed) == store.listed:
        yield "BREACH", f"{path.name} lists {min(foreign)} as seen, which is not in the store it was made from"
    seen = noted & {mark for trial in splits["test"] for mark in marks(trial)}
    unsaid = sum(not marks(trial) & noted for trial in learnt)
    if seen and not (of_images and protocol_named(str(checkpoint.get("protocol")))[0].repeats_images):
        yield "BREACH", f"its checkpoint was trained on test {kind}s: {', '.join(sorted(seen)[:5])}"
    if unsaid:
        yield "BREACH", f"{path.name} does not list {unsaid} of {len(learnt)} trials that it was trained on as seen"
    if (checkpoint.get("encoder_fingerprint") or None) != run.depends_on.get("encoder"):
        yield "BREACH", "its checkpoint is of another encoder than the run"
    elif not seen and not unsaid:
        yield "ok", f"{path.name} is of this run's encoder, and has seen no test {kind}"
    for name in OF_BOTH:
        if name in checkpoint and checkpoint[name] != run.argument.get(name):
            said, ours = checkpoint[name], run.argument.get(name)
            yield "BREACH", f"{path.name} was trained with --{name} {said}, and the run's record says {ours}"


def decoding_findings(runs: Sequence[Run]) -> Iterator[Finding]:
    """Whether the test was decoded with several epochs of one run: then somebody may have taken the best."""
    used = defaultdict(set)
    for run in runs:
        _, checkpoints = decoded_with(run.record)
        for checkpoint in checkpoints if isinstance(checkpoints, list) else [checkpoints]:  # several: of an ensemble
            if checkpoint and isinstance(checkpoint, str) and run.argument.get("split", "test") == "test":
                used[str(Path(checkpoint).absolute().parent)].add(Path(checkpoint).name)
    for folder, names in used.items():
        if len(names) > 1:
            yield Finding("BREACH", folder, f"the test was decoded with several epochs: {', '.join(sorted(names))}")

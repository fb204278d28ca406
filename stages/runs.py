"""A training run's folder: started, gone on with, finished; the best epoch; its report and its figure."""

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from stages.cards import CONTROL, model_card, newest_card, read_control, who_is_in, write_card
from stages.rows import Row, write_rows
from stages.scores import score_rows, worth
from utils.checkpoints import read_checkpoint, save_checkpoint, save_second_form
from utils.errors import UserError
from utils.files import environment, read_json, write_json, write_jsonl
from utils.paths import append, written_whole
from utils.script import command_line

# what `loading` says of a last.pth that cannot be read
LAST = ("--resume: last.pth", "it is damaged, or of another version; start in another folder")
ALWAYS_FREE = {"resume", "keep", "cuda", "cache_dir", "datasets_dir", "foundation_dir", "eval_batch_size"}
Content = dict | Callable[[Path], None]  # of a checkpoint, or a function that writes to a path


class Run:
    """A training run's folder: started or gone on with, an epoch after the other kept, the best one finished.

    files : sequence of str. Names of what an epoch leaves, with {} for its number; the first one is read back.
    choose_by : str. The read-out or measure whose validation chooses the epoch.
    keep : sequence of str. Of best, last and all: which epochs' files stay. The best one's always do.
    turn : tuple of int. Which process of how many that share the run this one is. The first one writes.

    record : dict. What run.json will say. state : dict. What a run that goes on starts from, {} for a new one.
    history : list of dict. A line an epoch.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        choose_by: str,
        keep: Sequence[str] = ("best",),
        turn: tuple[int, int] = (0, 1),
    ):
        self.folder, self.files, self.choose_by, self.keep = folder, files, choose_by, keep
        self.writes, self.num_processes = turn[0] == 0, turn[1]
        self.record, self.state, self.history = {}, {}, []

    def open(self, settings: Mapping, free: set[str], depends_on: Mapping) -> None:
        """Read the folder and take over what a run goes on from. Nothing is written yet.

        settings : mapping. All flags, `resume` among them. Under "defaults", what they are when nobody gives them: a
            run of before a flag existed had its default.
        free : set of str. Flags that may differ when a run goes on, besides `ALWAYS_FREE`.
        depends_on : mapping. Fingerprints of what the run depends on: the store's, the encoder's, …
        Raises UserError if the folder holds another run, finished epochs without --resume, or other settings.
        """
        if re.search("[\ud800-\udfff]", str(self.folder)):  # bytes that are no UTF-8: no card can name it
            raise UserError(f"{str(self.folder)!a} has a name that is no text; choose another folder")
        flags = json.loads(json.dumps(dict(settings), default=str))
        flags.pop("defaults", None)
        # what must be the same when a run goes on; one that went on is the same run, so its arguments lack `resume`
        fixed = {k: v for k, v in flags.items() if k not in free | ALWAYS_FREE}
        arguments = {k: v for k, v in flags.items() if k != "resume"}
        self.record = {"arguments": arguments, "fixed": fixed, "depends_on": dict(depends_on)}
        self.record |= {"environment": environment(), "command": command_line()}
        if not (self.folder / "last.pth").exists():
            self._check_new(settings["resume"])
            return
        if not settings["resume"]:
            raise UserError(f"{self.folder} holds finished epochs; go on with --resume, or choose another folder")
        self._check_same(fixed, settings.get("defaults", {}), depends_on)
        self.state = read_checkpoint(self.folder / "last.pth")
        self.history = self.state.get("history")
        if not is_history(self.history):
            path = self.folder / "last.pth"
            raise UserError(f"{path} is not what a run of this version goes on from; start in another folder")

    def _check_new(self, resume: bool) -> None:
        """Raise UserError where a folder without a finished epoch holds something else."""
        if not (self.folder / "run.json").exists() and any(self.folder.glob(self.files[0].format("*"))):
            raise UserError(f"{self.folder} holds checkpoints of another run; choose another folder")
        if (self.folder / "decoded.jsonl").exists():
            raise UserError(f"{self.folder} holds what a generating script decoded; choose another folder")
        if resume:
            print(f"notice: {self.folder} has no finished epoch to go on from; starting anew")

    def _check_same(self, fixed: Mapping, defaults: Mapping, depends_on: Mapping) -> None:
        """Raise UserError where the folder's run has other settings, or depends on something else."""
        path = self.folder / "run.json"
        before = read_json(path)
        if not all(isinstance(before.get(field), dict) for field in ("fixed", "depends_on")):
            raise UserError(f"{path} is damaged: it does not say how the run was started; --resume needs it")
        was = {k: before["fixed"].get(k, defaults.get(k)) for k in fixed}
        changed = [f"{k} was {was[k]!r} and is {v!r}" for k, v in fixed.items() if was[k] != v]
        if (n := before.get("num_processes", 1)) != self.num_processes:
            changed.append(f"it had {n} process(es), which share a batch, and has {self.num_processes}")
        changed += [f"it has another {k}" for k, v in depends_on.items() if before["depends_on"].get(k) != v]
        if changed:
            raise UserError(f"--resume: the run in {self.folder} differs: {'; '.join(changed)}")

    def begin(self, splits: Mapping | None = None, protocol: str = "", **more) -> None:
        """Write run.json, with `more` in it. Of a run that goes on, remove what a kill has left of other epochs.

        splits : mapping of mode to TrialDataset, optional. Who trains, validates and tests under the protocol.
        """
        if not self.writes:
            return
        if self.state:
            keep_epochs(self.folder, self.history, self.keep, self.choose_by, self.files)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(
                self.record
                | {"num_processes": self.num_processes}
                | more
                | {"data": who_is_in(splits or {}, protocol)},
                self.folder / "run.json",
            )

    def epochs(self, n: int) -> Iterator[int]:
        """The numbers of the epochs that are still to be done, up to `n`."""
        for epoch in range(len(self.history) + 1, n + 1):
            self.seconds, self._started = {}, time.perf_counter()
            yield epoch

    def trained(self, loss: float, what_to_do: str = "lower --lr") -> None:
        """Note the training time of the epoch. Raises UserError where its loss is not finite."""
        self.seconds["train_seconds"] = time.perf_counter() - self._started
        if not math.isfinite(loss):
            raise UserError(f"the loss of epoch {len(self.history) + 1} is {loss}; {what_to_do}")

    def save_epoch(
        self, loss: float, scores: Mapping, files: Sequence[Content], state: Mapping, phase: str = "joint", **more
    ) -> str:
        """Keep an epoch: its files, its line, and last of all what --resume goes on from. Returns the epoch in words.

        scores : mapping of read-outs to Accuracy, or measures to Measure. Of the validation.
        files : sequence. For each of `self.files` its content.
        state : mapping. Weights and optimiser, for last.pth.
        more : what the epoch's line in metrics.jsonl says besides.
        """
        if self.writes and not (self.folder / "run.json").is_file():
            raise UserError(
                f"{self.folder} was moved or removed while the run wrote into it; move it back, and --resume"
            )
        number, val = len(self.history) + 1, {name: score.as_dict() for name, score in scores.items()}
        self.history.append({"epoch": number, "phase": phase, "train_loss": loss, **more, "val": val})
        if self.writes:
            for name, content in zip(self.files, files, strict=True):
                path = self.folder / name.format(number)
                if callable(content):
                    with written_whole(path) as unfinished:
                        content(unfinished)
                else:
                    save_checkpoint(content | {"epoch": number}, path)
            seconds = self.seconds | {"seconds": time.perf_counter() - self._started}
            save_history(self.history, seconds, self.folder)
            save_checkpoint({"history": self.history, **state}, self.folder / "last.pth")
            keep_epochs(self.folder, self.history, self.keep, self.choose_by, self.files)
        return f"epoch {number} ({phase}): loss {loss:.4f}, validation {validation_line(val)}"

    def best_file(self, which: int = 0) -> Path:
        """The best epoch's file, of those that an epoch leaves."""
        return self.folder / self.files[which].format(best_epoch(self.history, self.choose_by)["epoch"])

    def finish(self, rows: Sequence[Row], shuffled: bool, measures: Mapping | None = None) -> None:
        """Write the best epoch's `results.json`, model card, second form and, where there are rows,
        `decoded_test.jsonl`; print its test scores.

        rows : sequence of Row. The decoded test trials; none of a model that draws, and does not decode.
        shuffled : bool. Whether this is the shuffled-label control.
        measures : mapping of name to Measure, optional. What stands beside the accuracies, or in their place.
        """
        if not self.writes:
            return
        best, test = best_epoch(self.history, self.choose_by), score_rows(rows) | dict(measures or {})
        chosen_by = self.choose_by if best["val"] else "none: the last epoch"
        results = {"best_epoch": best["epoch"], "selected_by": chosen_by, "val": best["val"]}
        results["test"] = {readout: score.as_dict() for readout, score in test.items()}
        results |= {"uses": rows[0].uses} if rows else {}
        if rows or measures is None:
            write_rows(rows, self.folder / "decoded_test.jsonl")
        if self.best_file().is_file():  # a ControlNet's folder is in the hub's layout already
            save_second_form(read_checkpoint(self.best_file()), self.folder, self.best_file().name)
        try:
            control = read_control(self.folder)
        except UserError as error:  # another run's folder
            print(f"notice: the card does not have the control's scores ({error})")
            control = None
        write_card(self.folder, model_card(self.folder, results, control))
        write_json(results, self.folder / "results.json")
        self._renew_the_card_of_its_run(shuffled)
        remove_pieces(self.folder)
        labels = " with SHUFFLED labels" if shuffled else ""
        print(f"\nbest epoch {best['epoch']} by validation ({chosen_by}); test{labels}:")
        print_scores(test)
        if not test:
            print("  no test trials in this store, so no score")
        print(f"checkpoints and metrics in {self.folder}")

    def _renew_the_card_of_its_run(self, shuffled: bool) -> None:
        """Of a control RUN_shuffled: its scores belong into RUN's card."""
        place = self.folder.resolve()
        of = place.with_name(place.name.removesuffix(CONTROL))
        if shuffled and of != place and all((of / name).is_file() for name in ("run.json", "results.json")):
            try:
                write_card(of, newest_card(of))
            except (UserError, OSError) as error:  # another run's folder: what is wrong there is not this one's fault
                print(f"notice: the card of {of} was not renewed ({error})")


def is_history(history: object) -> bool:
    """Whether these are the epochs 1, 2, … of a run with their scores. Files are named after their numbers."""
    return isinstance(history, list) and bool(history) and all(map(_is_epoch, history, range(1, len(history) + 1)))


def _is_epoch(epoch: object, number: int) -> bool:
    if not isinstance(epoch, dict) or type(epoch.get("epoch")) is not int or epoch["epoch"] != number:
        return False
    scores = epoch.get("val")
    if epoch.get("phase") not in ("warmup", "joint") or not isinstance(scores, dict):
        return False
    return all(isinstance(score, dict) and worth(score) is not None for score in scores.values())


def keep_epochs(
    run_dir: Path, history: Sequence[dict], keep: Sequence[str], readout: str, patterns: Sequence[str]
) -> None:
    """Remove the checkpoints that `--keep` does not ask for; the best epoch's stays, as it is the one that is tested.

    keep : sequence of str. Of best (so far, by the read-out's validation accuracy), last and all.
    patterns : sequence of str. The checkpoints' names, with {} for the epoch.
    """
    numbers = {row["epoch"] for row in history}
    best, last = best_epoch(history, readout)["epoch"], history[-1]["epoch"]
    kept = {"best": {best}, "last": {last}, "all": numbers}
    for epoch in numbers - {best}.union(*(kept[which] for which in keep)):
        for path in (run_dir / pattern.format(epoch) for pattern in patterns):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)


def best_epoch(history: Sequence[dict], readout: str) -> dict:
    """The epoch with the best validation score, the earlier one of equals; the last one where nothing validates."""
    if not history[-1]["val"]:
        return history[-1]
    return max(history, key=lambda row: (worth(row["val"][readout]), -row["epoch"]))


def validation_line(val: Mapping) -> str:
    """Validation scores of an epoch in one line."""
    if not val:
        return "none"
    parts = []
    for readout, score in val.items():
        task = f" (task {100 * score['task']['accuracy']:.1f} %)" if score.get("task") else ""
        is_measure = "measure" in score
        parts.append(
            f"{readout} {score['value']:.4f}" if is_measure else f"{readout} {100 * score['accuracy']:.1f} %{task}"
        )
    n, line = next(iter(val.values()))["n"], _recording_line(val)
    return ", ".join(parts) + f", n = {n}" + (f"; the recording alone gives {100 * line:.1f} %" if line else "")


def _recording_line(val: Mapping) -> float | None:
    return next((score["recording_line"] for score in val.values() if score.get("recording_line")), None)


def remove_pieces(folder: Path) -> None:
    """Remove what `DecodedPieces` keeps of each batch: all is decoded, and written elsewhere."""
    for path in folder.glob(".decoded-*.jsonl"):
        path.unlink(missing_ok=True)


def print_scores(scores: Mapping) -> None:
    """One line a read-out."""
    for readout, score in scores.items():
        print(f"  {readout:10} {score}")


def check_output(folder: Path) -> None:
    """Refuse to decode into the folder of a training run: its run.json is what --resume needs."""
    if any((folder / name).exists() for name in ("last.pth", "metrics.jsonl")):
        raise UserError(f"--output_dir {folder} is the folder of a training run; choose another one")


def report_decoded(rows: Sequence[Row], output_dir: Path, record: dict) -> None:
    """Write `decoded.jsonl` and `run.json`; print some lines and the scores."""
    write_rows(rows, output_dir / "decoded.jsonl")
    write_json(record | {"environment": environment()}, output_dir / "run.json")
    print(f"\nwrote {output_dir / 'decoded.jsonl'}")
    for row in rows[:5]:
        print(f"  {row.subject} {row.session} {row.index:5d}  true {row.true_name}: {row.text!r}")
    print_scores(score_rows(rows))


def save_history(history: Sequence[dict], seconds: Mapping, run_dir: Path) -> None:
    """`metrics.jsonl`, one line an epoch, `learning_curve.png`, and how long the last epoch took, in `timing.jsonl`.

    Times stand apart, so that the same command twice writes the same files but for that one.
    """
    append(run_dir / "timing.jsonl", json.dumps({"epoch": history[-1]["epoch"]} | dict(seconds)).encode() + b"\n")
    write_jsonl(list(history), run_dir / "metrics.jsonl")
    learning_curve(history, run_dir / "learning_curve.png")


def learning_curve(history: Sequence[dict], path: Path) -> None:
    """Loss and validation by epoch; the joint phase is shaded, chance and the recording's line are dashed."""
    epochs, first = [row["epoch"] for row in history], history[0]["val"]
    figure = Figure(figsize=(9, 3.2))
    left, right = figure.subplots(1, 2)
    # by hand: a layout that is computed takes as long as the drawing, every epoch
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.16, top=0.96, wspace=0.22)
    left.plot(epochs, [row["train_loss"] for row in history], "o-", ms=3)
    left.set(xlabel="epoch", ylabel="training loss")
    for readout, score in first.items():
        scores, unit = [row["val"][readout] for row in history], 1 if "measure" in score else 100
        right.plot(epochs, [unit * worth(score) for score in scores], "o-", ms=3, label=f"{readout}, n = {score['n']}")
        low, high = ([unit * score[end] for score in scores] for end in ("low", "high"))
        right.fill_between(epochs, low, high, alpha=0.15, linewidth=0)
    # of a measure, which is no accuracy, there is none
    chance = next((score["chance"] for score in first.values() if "chance" in score), None)
    if chance is not None:
        right.axhline(100 * chance, color="grey", ls="--", lw=1, label="chance")
    if line := _recording_line(first):
        right.axhline(100 * line, color="firebrick", ls="--", lw=1, label="recording alone")
    if chance is None:
        right.set(xlabel="epoch", ylabel=f"validation {next((score['measure'] for score in first.values()), '')}")
    else:
        right.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100))
    right.legend(fontsize=8)
    joint = [row["epoch"] for row in history if row["phase"] == "joint"]
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if joint:
            axis.axvspan(joint[0] - 0.5, joint[-1] + 0.5, color="grey", alpha=0.08, linewidth=0)
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")

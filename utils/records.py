"""What a run leaves beside its output: arguments, versions, commit, seed, data, metrics; and its figure."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the back end is chosen

from utils.errors import UserError  # noqa: E402
from utils.paths import ROOT, written_whole  # noqa: E402
from utils.statistics import score_readouts  # noqa: E402

PACKAGES = ("torch", "transformers", "diffusers", "peft", "bitsandbytes", "accelerate", "numpy", "scipy", "mne", "lmdb")


def environment() -> dict:
    """Versions of Python and the libraries that matter, and the commit (with "+" where files differ from it)."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
        commit += "+" if changed else ""
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    installed = {dist.metadata["Name"].lower() for dist in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) if name in installed else "not installed" for name in PACKAGES}
    return {"commit": commit, "python": platform.python_version(), **versions}


def write_json(content: dict, path: Path) -> None:
    """Write a readable JSON file, whole or not at all."""
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, default=str) + "\n")


def write_jsonl(rows: list[dict], path: Path) -> None:
    """Write one JSON object a line, whole or not at all."""
    with written_whole(path) as unfinished:
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """Read what `write_jsonl` wrote."""
    try:
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    except ValueError:
        raise UserError(f"{path} is damaged: a line of it is not JSON; make it anew") from None


def report_decoded(rows: list[dict], chance: float, output_dir: Path, record: dict) -> None:
    """Write `decoded.jsonl` and `run.json`; print some lines and the scores."""
    write_jsonl(rows, output_dir / "decoded.jsonl")
    write_json(record | {"environment": environment()}, output_dir / "run.json")
    print(f"\nwrote {output_dir / 'decoded.jsonl'}")
    for row in rows[:5]:
        print(f"  {row['subject']} {row['session']} {row['index']:5d}  true {row['true_name']}: {row['text']!r}")
    for readout, result in score_readouts(rows, chance).items():
        print(f"  {readout:10} {result}")


def read_decoded(output_dir: Path, classes: tuple[str, ...]) -> list[dict]:
    """The trials that the decoding stage left for the image stage.

    Raises
    ------
    UserError
        If they are not there, damaged, or of other classes.
    """
    path = output_dir / "decoded.jsonl"
    if not path.exists():
        raise UserError(f"{path} is not there; run --stage decode first")
    rows = read_jsonl(path)
    for line, row in enumerate(rows, start=1):
        needed = {"index", "true_label", "true_name", "predicted_label", "predicted_name", "prompt"}
        if not isinstance(row, dict) or not needed <= set(row):
            raise UserError(f"{path} is damaged: line {line} is no decoded trial; run --stage decode again")
        if row["true_name"] not in classes or classes.index(row["true_name"]) != row["true_label"]:
            raise UserError(f"{path}, line {line}: class {row['true_name']!r}; expected one of {', '.join(classes)}")
    return rows


def open_run(run_dir: Path, args, free: set[str], store: str, checkpoints: str) -> tuple[dict, bool]:
    """The record of a new run, and whether there is one to go on with; nothing is overwritten unasked.

    Parameters
    ----------
    run_dir : Path
    args : argparse.Namespace
        With `resume`.
    free : set of str
        Flags that may differ when a run goes on.
    store : str
        The trial store's fingerprint.
    checkpoints : str
        Pattern of the checkpoints' names.

    Raises
    ------
    UserError
        If the folder holds another run, finished epochs without --resume, or a run with other settings.
    """
    fixed = {k: v for k, v in vars(args).items() if k not in free | {"resume", "cuda", "cache_dir"}} | {"store": store}
    record = {"arguments": vars(args), "fixed": fixed, "environment": environment()}
    if not (run_dir / "last.pth").exists():
        if not (run_dir / "run.json").exists() and any(run_dir.glob(checkpoints)):
            raise UserError(f"{run_dir} holds checkpoints of another run; choose another folder")
        if args.resume:
            print(f"notice: {run_dir} has no finished epoch to go on from; starting anew")
        return record, False
    if not args.resume:
        raise UserError(f"{run_dir} holds finished epochs; go on with --resume, or choose another folder")
    before = json.loads((run_dir / "run.json").read_text())["fixed"]
    changed = [f"{k} was {before.get(k)!r} and is {v!r}" for k, v in fixed.items() if before.get(k) != v]
    if changed:
        raise UserError(f"--resume: the run in {run_dir} differs: {'; '.join(changed)}")
    return record, True


def report_test(run_dir: Path, rows: list[dict], best: dict, select_by: str, chance: float, shuffled: bool) -> None:
    """Write `decoded_test.jsonl` and `results.json` of a training run's best epoch, and print its test scores.

    Parameters
    ----------
    run_dir : Path
    rows : list of dict
        The decoded test trials.
    best : dict
        The best epoch's line of the history.
    select_by : str
        The read-out whose validation accuracy chose it.
    chance : float
    shuffled : bool
        Whether the labels were shuffled: the twin.
    """
    test = score_readouts(rows, chance)
    results = {"best_epoch": best["epoch"], "selected_by": select_by, "val": best["val"],
               "test": {readout: result.as_dict() for readout, result in test.items()}}  # fmt: skip
    write_jsonl(rows, run_dir / "decoded_test.jsonl")
    write_json(results, run_dir / "results.json")
    twin = " with SHUFFLED labels" if shuffled else ""
    print(f"\nbest epoch {best['epoch']} by validation accuracy ({select_by}); test{twin}:")
    for readout, result in test.items():
        print(f"  {readout:10} {result}")
    if not rows:
        print("  no test trials in this store, so no score")
    print(f"checkpoints and metrics in {run_dir}")


def learning_curve(history: list[dict], chance: float, path: Path) -> None:
    """Loss and validation accuracy by epoch; the joint phase is shaded, chance is dashed."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [row["train_loss"] for row in history], "o-", ms=3)
    left.set(xlabel="epoch", ylabel="training loss")
    for readout in history[0]["val"]:
        scores = [row["val"][readout] for row in history]
        mean = [100 * score["accuracy"] for score in scores]
        right.plot(epochs, mean, "o-", ms=3, label=f"{readout}, n = {scores[0]['n']}")
        low, high = ([100 * score[end] for score in scores] for end in ("low", "high"))
        right.fill_between(epochs, low, high, alpha=0.15, linewidth=0)
    right.axhline(100 * chance, color="grey", ls="--", lw=1, label="chance")
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
    plt.close(figure)

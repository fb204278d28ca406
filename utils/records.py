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


def learning_curve(history: list[dict], chance: float, path: Path) -> None:
    """Loss and validation accuracy by epoch; the joint phase is shaded, chance is dashed."""
    epochs = [row["epoch"] for row in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [row["train_loss"] for row in history], "o-", ms=3)
    left.set(xlabel="epoch", ylabel="training loss (nats a token)")
    for readout in ("keyword", "likelihood"):
        scores = [row["val"][readout] for row in history if row["val"]]
        if scores:
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

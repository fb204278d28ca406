"""Goal: nothing grows faster than linearly with the trials, and a contrastive training's own memory has a bound.

    python benchmarks/growth.py                                     # 1,000 to 100,000 trials
    python benchmarks/growth.py --sizes 200 400 800 --rounds 1      # a look

Stores of noise like BCIC-IV-2b's (3 electrodes, 4 s at 250 Hz), and THINGS-like ones (63 electrodes, 0.4 s) for the
contrastive training by its script. What is measured at each size:

store size, writing          MB, and seconds
opening                      of the store and its training split, checksums of the list included
shuffled reads               of all trials once, and their samples' checksums
token cache, from the cache  tokens of all trials by a CSBrain of one layer; then read again
epoch, tokens                loader, collation, and a step of the class head
epoch, contrastive           NICE in finetune_eeg_to_clip.py, as its timing.jsonl says; private memory of the process:
                             prepared trials are kept up to 2 GiB (KEPT_BYTES in datasets/trials.py), beyond that none
evaluate.py, audit           of the decoded test trials, two of nine people; of the store and these rows
page                         of report.html with a picture for every tenth trial

Prints a table with the exponent b of cost = a · trials^b, fitted to the three largest sizes, and what the lines say of
larger data sets (computed, not measured); draws growth.png.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets.bciciv2b_dataset import DESCRIPTION
from datasets.recording import Trial
from datasets.store import write_store
from datasets.trials import TextCollator, TrialDataset
from demo.tiny_models import byte_tokenizer
from evaluation.report import _embedded, page
from models.CSBrain import CSBrain
from models.eeg_llm import ClassHead
from stages.rows import new_row, text_readouts, write_rows
from stages.tokens import TokenCache

MONTAGE, SHAPE = DESCRIPTION.montage, (3, 1000)
# name → trials, values of a trial
LARGER = {
    "THINGS-EEG2 whole": (660_000, 63 * 250),
    "Alljoined-1.6M": (1_600_000, 32 * 250),
    "a thousand people of BCIC-IV-2a": (576_000, 22 * 1000),
}


def written(path: Path, n: int) -> TrialDataset:
    """Of nine people, a hundred trials a run."""
    rng = np.random.default_rng(0)

    def parts() -> Iterator[list]:
        for start in range(0, n, 1000):
            part = []
            for k in range(start, min(start + 1000, n)):
                person, number = f"B{k % 9 + 1:02d}", k // 9
                session, run = str(number // 100 % 5 + 1), number // 500 + 1
                key = f"{person}-{session}-r{run}-t{number % 100:03d}"
                trial = Trial(key, int(rng.integers(2)), person, session, run, number % 100 + 1)
                part.append((trial, 20 * rng.standard_normal(SHAPE, dtype=np.float32)))
            yield part

    write_store(path, {"sfreq": 250.0, "dataset": "BCICIV2b", "electrodes": list(MONTAGE.electrodes)}, parts())
    return opened(path)


def opened(path: Path, mode: str = "train") -> TrialDataset:
    return TrialDataset(path, mode, "published", DESCRIPTION)


def everything(dataset: TrialDataset) -> TrialDataset:
    """All trials of the store as one split."""
    return dataset.relabelled(dataset.store.trials, [trial.label for trial in dataset.store.trials])


def read_shuffled(dataset: TrialDataset) -> None:
    for k in np.random.default_rng(0).permutation(len(dataset)):
        dataset.store.read(dataset.trials[k]).sum()


def epoch_of_tokens(dataset: TrialDataset) -> None:
    """Batches of 32 through the collator of text training, and a linear step."""
    _, n_tokens, width = dataset.tokens.shape
    head = ClassHead(n_tokens, width, len(DESCRIPTION.classes), True)
    optimizer = torch.optim.AdamW(head.parameters())
    collate = TextCollator(DESCRIPTION, byte_tokenizer())
    for batch in DataLoader(dataset, 32, shuffle=True, collate_fn=collate):
        torch.nn.functional.cross_entropy(head(batch["x"]), batch["label"]).backward()
        optimizer.step()
        optimizer.zero_grad()


def decoded(dataset: TrialDataset, folder: Path) -> Path:
    """A run's folder: trials decoded by chance."""
    rng, sentences = np.random.default_rng(0), DESCRIPTION.canonical
    rows = []
    for k, p in enumerate(rng.dirichlet([1, 1], len(dataset)).tolist()):
        read = text_readouts(DESCRIPTION, sentences[int(p[1] > 0.5)], {"likelihood": p})
        rows.append(new_row(dataset, k, read, sentences[int(p[1] > 0.5)]))
    folder.mkdir()
    write_rows(rows, folder / "decoded_test.jsonl")
    return folder


def page_of(n: int) -> None:
    """A page with n cards."""
    picture = _embedded(Image.effect_noise((96, 96), 60))
    card = {
        "run": "r", "person": "B01", "session": "1", "recording": 1, "trial": 2, "true": "left hand",
        "decoded": "right hand", "right": False, "text": "a text", "prompt": "a prompt", "model": "a model",
        "simulated": True, "seen": picture, "drawn": picture, "read_by": "likelihood",
        "chances": [("left hand", 0.4), ("right hand", 0.6)], "eeg": None,
    }  # fmt: skip
    page({"Results": (["run"], [["r"]])}, [], [], [], [dict(card) for _ in range(n)])


def contrastive(folder: Path, n: int, rounds: int) -> tuple[list[float], float]:
    """Seconds of epochs behind the first, and private memory in GB."""
    store, features = common.things_store(folder, n, n_times=100, width=256)
    most = common.run([
        common.ROOT / "finetune_eeg_to_clip.py", "--datasets_dir", store, "--protocol", "within:sub-01", "--encoder",
        "nice", "--clip_features", features, "--images_dir", folder, "--cache_dir", folder, "--average_train", 1,
        "--epochs", rounds + 1, "--output_dir", folder / "run", "--cuda", -1,
    ])  # fmt: skip
    lines = (folder / "run/timing.jsonl").read_text().splitlines()
    return [json.loads(line)["train_seconds"] for line in lines][1:], most["private"]


def measure(n: int, rounds: int, slow: bool) -> dict[str, float]:
    """Costs at one size: medians over the rounds of what repeats."""
    costs, seconds = {}, defaultdict(list)

    def timed(name: str, work, *arguments):  # noqa: ANN001, ANN202
        started = time.perf_counter()
        given = work(*arguments)
        seconds[name].append(time.perf_counter() - started)
        return given

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        dataset = everything(timed("writing, s", written, path, n))
        costs["store size, MB"] = (path / "data.mdb").stat().st_size / 1e6
        encoder = CSBrain(n_layer=1, brain_regions=MONTAGE.brain_regions, sorted_indices=MONTAGE.sorted_indices)
        for number in range(rounds):
            timed("opening, s", opened, path)
            dataset.store._verified.clear()
            timed("shuffled reads, s", read_shuffled, dataset)
            for name in ("token cache, s", "from the cache, s"):
                cache = TokenCache(Path(folder) / f"cache{number}", encoder, MONTAGE, "region")
                tokens = timed(name, cache.tokens, dataset, torch.device("cpu"))
            timed("epoch, tokens, s", epoch_of_tokens, dataset.with_tokens(tokens))
            timed("page, s", page_of, n // 10)
        run = decoded(opened(path, "test"), Path(folder) / "run")
        for _ in range(rounds):
            asked = [common.ROOT / "evaluate.py", run, "--output_dir", Path(folder) / "tables"]
            timed("evaluate.py, s", common.run, asked)
            if slow:
                timed("audit, s", common.run, [common.ROOT / "evaluate.py", "--audit", path, run])
    if slow:
        with tempfile.TemporaryDirectory() as folder:
            seconds["epoch, contrastive, s"], costs["its private memory, GB"] = contrastive(Path(folder), n, rounds)
    return costs | {name: median(of) for name, of in seconds.items()}


def fitted(sizes: list[int], costs: list[float]) -> tuple[float, float]:
    """a and b of cost = a · trials^b, of the three largest sizes."""
    b, log_a = np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(costs[-3:], 1e-6)), 1)
    return float(np.exp(log_a)), float(b)


def main() -> None:
    parser = common.new_parser(__doc__, rounds=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument("--slow", type=int, default=30_000, help="largest size of the contrastive epoch and the audit")
    parser.add_argument("--output_dir", type=Path, default=common.ROOT / "outputs/benchmarks", help="for growth.png")
    args = parser.parse_args()
    print(common.machine())
    of_size = {n: measure(n, args.rounds, n <= args.slow) for n in sorted(args.sizes)}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis, lines = figure.subplots(), {}
    print("| cost | " + " | ".join(f"{n:,}" for n in of_size) + " | exponent |\n" + "| --- " * (len(of_size) + 2) + "|")
    for name in next(iter(of_size.values())):
        sizes = [n for n, costs in of_size.items() if name in costs]
        costs = [of_size[n][name] for n in sizes]
        lines[name] = fitted(sizes, costs) if len(sizes) > 1 else (0.0, 0.0)
        cells = [f"{of_size[n][name]:.3g}" if n in sizes else "" for n in of_size]
        print(f"| {name} | " + " | ".join(cells) + f" | {lines[name][1]:.2f} |")
        axis.loglog(sizes, costs, "o-", ms=3, label=f"{name}, exponent {lines[name][1]:.2f}")
    axis.set(xlabel="trials", ylabel="cost")
    axis.legend(fontsize=7)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output_dir / "growth.png", dpi=120)
    print(f"\n{args.output_dir / 'growth.png'}\n\nComputed from the fitted lines, not measured:\n")
    paper(lines)


def paper(lines: dict) -> None:
    """What the lines say of larger data sets; what depends on a trial's samples is scaled by them."""
    by_samples = {"store size, MB": SHAPE, "writing, s": SHAPE, "shuffled reads, s": SHAPE,
                  "epoch, contrastive, s": (63, 100)}  # fmt: skip
    print("| cost | " + " | ".join(LARGER) + " |\n" + "| --- " * (len(LARGER) + 1) + "|")
    for name, (a, b) in lines.items():
        values = []
        for n, samples in LARGER.values():
            values.append(a * n**b * (samples / np.prod(by_samples[name]) if name in by_samples else 1))
        print(f"| {name} | " + " | ".join(f"{value:.3g}" for value in values) + " |")


if __name__ == "__main__":
    main()

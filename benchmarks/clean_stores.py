"""False alarms of the audit: random stores in which nothing is planted, of every dataset, under every protocol.

    python benchmarks/clean_stores.py --number 200 --seed 0

A store is simulated: people with electrodes mixed in their own way, noise with more power at low frequencies, rhythms,
amplitudes that drift, classes in blocks or in random order, an effect or none; pictures are random colours. Prints
each breach, and how often each check said something else than ok.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from benchmarks.common import machine, new_parser
from datasets.description import DATASETS, DatasetDescription, described
from datasets.electrodes import montage_of
from datasets.recording import Trial
from datasets.splits import PROTOCOLS, split_trials
from datasets.store import open_store, write_store
from evaluation.audit import findings
from utils.errors import UserError

SFREQ, N_TIMES = 200.0, 200
KINDS = [name for name in DATASETS if name != "FACED"] + ["own"]  # FACED is read from a store of somebody else's


def main() -> None:
    parser = new_parser(__doc__, rounds=None)
    parser.add_argument("--number", type=int, default=200, help="of stores (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first store; the next has the next one")
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS, help="these datasets (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())

    said, audits, breaches, start = Counter(), Counter(), 0, time.monotonic()
    for number in range(args.number):
        kind = args.only[number % len(args.only)]
        rng = np.random.default_rng(args.seed + number)
        with tempfile.TemporaryDirectory() as folder:
            description, facts = clean_store(Path(folder), kind, rng)
            store = open_store(Path(folder) / "processed_lmdb")
            for protocol in protocols_for(store, description, rng):
                audits[kind, protocol.partition(":")[0]] += 1
                images = Path(folder) / "images"
                places = images if images.is_dir() else None, None, None
                for finding in findings(store, description, [protocol], [], {}, *places, torch.device("cpu")):
                    if finding.kind != "ok" and finding.check != "by design":
                        said[finding.kind, finding.check] += 1
                    if finding.kind == "BREACH":
                        breaches += 1
                        print(f"seed {args.seed + number}, {kind}, {protocol}, {facts}: {finding}", flush=True)
    seconds = time.monotonic() - start
    print(f"{breaches} breaches in {sum(audits.values())} audits of {args.number} stores; {seconds / 60:.1f} minutes")
    print("audits: " + ", ".join(f"{' '.join(which)} {n}" for which, n in sorted(audits.items())))
    print("not ok: " + ", ".join(f"{' '.join(which)} {n}" for which, n in sorted(said.items())))


def clean_store(folder: Path, kind: str, rng: np.random.Generator) -> tuple[DatasetDescription, str]:
    """Write a store of one dataset into `folder`; its description, and what was drawn by chance in words."""
    n_people, n_sessions = int(rng.integers(1, 6)), int(rng.integers(1, 3))
    in_blocks = kind == "EEGImageNet" or bool(rng.integers(2))
    drift, effect = float(rng.choice([0, 0.1, 0.3])), float(rng.choice([0, 0.1, 0.3]))
    average_reference = bool(rng.integers(2))
    meta = {"sfreq": SFREQ, "dataset": kind, "simulated": True, "preprocessing": {"tmin": 0.0, "tmax": 1.0}}
    if kind == "own":
        names = [str(name) for name in rng.permutation(["Fz", "C3", "Cz", "C4", "Pz", "O1", "O2", "T7", "T8", "Oz"])]
        montage = montage_of(names[: int(rng.integers(2, 11))])[0]
        description = DatasetDescription("own", montage, tuple("abcd"[: int(rng.integers(2, 5))]))
        meta["description"] = description.as_record()
    else:
        description = described(kind, None, str(folder))
    electrodes = description.montage.electrodes
    labels, images = conditions(folder, kind, description, rng)
    if kind in ("THINGS", "EEGImageNet"):
        meta |= {"classes": [f"n{k:08d}" for k in range(max(labels) + 1)], "electrodes": list(electrodes)}
        meta |= {"granularities": {"coarse": sorted(set(labels))}} if kind == "EEGImageNet" else {}
    people = people_of(description, n_people)
    trials = []
    for person in people:
        mixing = np.eye(len(electrodes)) + 0.5 * rng.standard_normal((len(electrodes),) * 2) / len(electrodes) ** 0.5
        response = rng.standard_normal((max(labels) + 1, len(electrodes), 3))  # of each class to three rhythms
        for session in range(1, n_sessions + 1):
            order, loudness = order_of(labels, rng, in_blocks), np.zeros((len(electrodes), 1))
            for n, k in enumerate(order, start=1):
                loudness += drift * rng.standard_normal(loudness.shape) * (labels[order[n - 2]] != labels[k])
                x = noise(len(electrodes), rng) + effect * rhythms(response[labels[k]], rng)
                x = 10 * np.exp(loudness) * (mixing @ x)
                x -= x.mean(axis=0) if average_reference else 0
                name, image = f"{person}-{session}-r1-t{n:05d}", images[k] if images else ""
                trials.append((Trial(name, labels[k], person, str(session), 1, n, image), x.astype(np.float32)))
    write_store(folder / "processed_lmdb", meta, [trials])
    drawn = f"{len(people)} people, {n_sessions} sessions, {len(trials)} trials, drift {drift}, effect {effect}"
    return description.of_store(meta), f"{drawn}, {'in blocks' if in_blocks else 'in random order'}"


def conditions(folder, kind, description, rng) -> tuple[list[int], list[str]]:
    """The label of each trial of a session, and its image where the dataset has one; draws the images."""
    if kind == "THINGS":  # 12 concepts train, 4 test; two photos, two repetitions
        images = [f"training_images/{k:05d}_c{k}/c{k}_{j}.jpg" for k in range(12) for j in range(2)]
        images += [f"test_images/{k:05d}_u{k}/u{k}_0.jpg" for k in range(4)]
        labels = [k // 2 for k in range(24)] + list(range(12, 16))
    elif kind == "EEGImageNet":
        images = [f"n{k:08d}/n{k:08d}_{j}.JPEG" for k in range(4) for j in range(10)]
        labels = [k // 10 for k in range(40)]
    else:
        n_classes, each = len(description.classes), int(rng.integers(4, 10))
        return [k for k in range(n_classes) for _ in range(each)], []
    for image in images:
        path = folder / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))  # blurred colours, no two alike
        photo.resize((128, 128), Image.Resampling.BICUBIC).save(path)
    return labels * (2 if kind == "THINGS" else 1), images * (2 if kind == "THINGS" else 1)


def people_of(description: DatasetDescription, number: int) -> list[str]:
    """As many as are asked for, of each published split one before anybody else."""
    published = [person for split in ("test", "val", "train") for person in description.people.get(split, ())[:1]]
    others = [person for people in description.people.values() for person in people if person not in published]
    known = [*published, *others] or list(description.everyone) or [f"P{k}" for k in range(1, 10)]
    return sorted(known[:number])


def order_of(labels: list[int], rng, in_blocks: bool) -> list[int]:
    """The places of `labels` in an order of presentation: by class, classes in random order, or wholly random."""
    if not in_blocks:
        return [int(k) for k in rng.permutation(len(labels))]
    return [k for label in rng.permutation(sorted(set(labels))) for k in range(len(labels)) if labels[k] == label]


def noise(n_chans: int, rng) -> np.ndarray:
    """Noise of standard deviation 1, weaker at higher frequencies from 1 Hz on → (n_chans, n_times)."""
    spectrum = np.fft.rfft(rng.standard_normal((n_chans, N_TIMES)))
    spectrum /= np.maximum(np.fft.rfftfreq(N_TIMES, 1 / SFREQ), 1) ** 0.5
    x = np.fft.irfft(spectrum, N_TIMES)
    return x / x.std()


def rhythms(strength: np.ndarray, rng) -> np.ndarray:
    """Rhythms of 6, 10 and 22 Hz in random phases; strength: (n_chans, 3) → (n_chans, n_times)."""
    t, phases = np.arange(N_TIMES) / SFREQ, rng.uniform(0, 2 * np.pi, 3)
    return sum(
        s[:, None] * np.sin(2 * np.pi * hz * t + p) for s, hz, p in zip(strength.T, (6, 10, 22), phases, strict=True)
    )


def protocols_for(store, description: DatasetDescription, rng) -> list[str]:
    """Every protocol that deals out the trials of this store, with a person drawn by chance where it takes one."""
    people, found = sorted({trial.subject for trial in store.trials}), []
    for name, protocol in PROTOCOLS.items():
        person = people[int(rng.integers(len(people)))]
        others = [other for other in people if other != person]
        named = {"people": f"{person}/{others[0]}" if others else "", "run": f"{person}/1.1"}.get(name, person)
        whole = f"{name}:{named}" if protocol.takes_person else name
        try:
            splits = split_trials(store, description, whole)
        except UserError:  # too few people, sessions or runs, or no images
            continue
        if splits["train"] and splits["test"]:
            found.append(whole)
    return found


if __name__ == "__main__":
    main()

"""Goal: an epoch of finetune_eeg_to_clip.py takes at most 1.1 times the bare passes of the same network.

    python benchmarks/contrastive_training.py
    python benchmarks/contrastive_training.py --encoders nice --trials 1024 --memory_trials 2000      # a look

A THINGS-like store of noise (63 electrodes, 1 s at 250 Hz), embeddings of its images given, batches of 1,024. Sides:

ours      the script's epochs: store, collation, targets, optimiser, progress; as timing.jsonl says
bare      forward pass, the same loss, backward pass, on tensors that lie in memory
authors   ATM's way, written from its description: all arrays of a person are read, joined and kept in memory, targets
          are looked up in Python lists by place, and all embeddings of an epoch are collected

Then the peak memory of a training, ours and the authors', at two sizes of the store: all of it, and what is private
(without pages of the mapped store, which the system takes back when it needs them).
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from datasets.repetitions import Averages, averages
from datasets.store import description_of_store
from datasets.trials import load_splits
from models.eeg_embedding import EEGEmbedding
from models.recipes import recipe_of
from stages.targets import Images, TargetSettings

BATCH = 1024


def split_and_target(store: Path, features: Path, encoder: str) -> tuple:
    """Training trials, their groups, and what they are trained towards, as the script has them."""
    splits = load_splits(store, description_of_store(store), "within:sub-01")
    share = recipe_of(encoder).lambda_text
    where = {"images_dir": store, "cache_dir": store.parent, "clip_model": "none", "image_model": "none"}
    settings = TargetSettings(
        "nce", **where, clip_features=[str(features)], lambda_text=share, train_scale=recipe_of(encoder).train_scale
    )
    target, groups = Images(settings), averages(splits["train"], 1)
    target.build(splits, groups)
    return splits["train"], groups, target


def network(train, encoder: str, width: int) -> EEGEmbedding:
    torch.manual_seed(0)
    return EEGEmbedding(encoder, width, list(train.montage.electrodes), train.n_times, train.sfreq, train.units).train()


def bare_passes(train, groups, target, encoder: str):
    """An epoch as a function: passes on tensors in memory, prepared and collated before."""
    model = network(train, encoder, target.out)
    items = Averages(train.prepared(model.prepare), groups, [], target.tables)
    whole = default_collate([items[k] for k in range(len(items))])

    def epoch() -> None:
        for places in torch.randperm(len(items)).split(BATCH):
            batch = {name: values[places] for name, values in whole.items()}
            target.loss(model(batch["x"], batch["subject"]), batch, model.scale()).backward()
            model.zero_grad()

    return epoch


class InMemory(Dataset):
    """ATM's data set by its description: a tensor of all trials, lists of texts and of images' files."""

    def __init__(self, train, target):
        arrays = [torch.from_numpy(train.samples(trial).copy()) for trial in train.trials]  # of the person's file
        self.x = torch.cat([array[None] for array in arrays])
        self.labels = list(train.labels)
        self.images = list(dict.fromkeys(trial.image for trial in train.trials))
        place = {image: k for k, image in enumerate(self.images)}
        self.places = [place[trial.image] for trial in train.trials]
        self.features = [target.tables["target"][image].float() for image in self.images]
        texts = target.tables.get("text", target.tables["target"])
        self.texts = [texts[image].float() for image in self.images]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k):
        place = self.places[k]
        return self.x[k], self.labels[k], self.images[place], self.texts[place], self.features[place]


def clip_loss(eeg: torch.Tensor, target: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    logits = scale * F.normalize(eeg, dim=1) @ F.normalize(target, dim=1).T
    own = torch.arange(len(eeg))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def authors_epochs(train, target, encoder: str):
    """An epoch as a function."""
    data, model = InMemory(train, target), network(train, encoder, target.out)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    loader = DataLoader(data, BATCH, shuffle=True)

    def epoch() -> None:
        collected = []
        for x, _, _, text, image in loader:
            optimizer.zero_grad()
            eeg = model(x, torch.full((len(x),), -1))
            scale = model.scale()
            loss = 0.99 * clip_loss(eeg, image, scale) + 0.01 * clip_loss(eeg, text, scale)
            loss.backward()
            optimizer.step()
            collected.append(eeg.detach())

    return epoch


def authors_memory(store: Path, features: Path, encoder: str) -> float:
    """One epoch; private memory in GB behind it, while all arrays are there."""
    train, _, target = split_and_target(store, features, encoder)
    epoch = authors_epochs(train, target, encoder)
    epoch()
    return common.memory()["private"]


def command(store: Path, features: Path, encoder: str, folder: Path, epochs: int) -> list:
    return [
        common.ROOT / "finetune_eeg_to_clip.py", "--datasets_dir", store, "--protocol", "within:sub-01", "--encoder",
        encoder, "--clip_features", features, "--images_dir", store, "--cache_dir", store.parent, "--average_train", 1,
        "--batch_size", BATCH, "--epochs", epochs, "--output_dir", folder, "--cuda", -1, "--subject_embedding",
        "shared",
    ]  # fmt: skip


def main() -> None:
    parser = common.new_parser(__doc__)
    parser.add_argument("--encoders", nargs="+", default=["atm", "nice"])
    parser.add_argument("--trials", type=int, default=2 * BATCH, help="training trials of the store for the ratio")
    parser.add_argument("--memory_trials", type=int, nargs="*", default=[5_000, 50_000], help="sizes for the memory")
    parser.add_argument("--memory_encoder", default="nice", help="which one trains for the memory")
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory() as folder:
        store, features = common.things_store(Path(folder), args.trials)
        for encoder in args.encoders:
            train, groups, target = split_and_target(store, features, encoder)
            sides = {"bare": bare_passes(train, groups, target, encoder)}
            sides["authors"] = authors_epochs(train, target, encoder)
            out = Path(folder) / encoder
            script = command(store, features, encoder, out, args.rounds + 1)
            ours, (bare, authors) = common.around(script, out, sides, args.rounds)
            rates = {name: common.spread([len(train) / s for s in of], 0) for name, of in
                     (("ours", ours), ("bare", bare), ("authors", authors))}  # fmt: skip
            print(
                f"{encoder}, {len(train)} trials an epoch: " + ", ".join(f"{n} {r}" for n, r in rates.items()) + " /s"
            )
            print(f"  ours / bare {common.ratio(ours, bare)} (goal: ≤ 1.1)")
            print(f"  authors' way / ours {common.ratio(authors, ours)}")
    for n in args.memory_trials:
        with tempfile.TemporaryDirectory() as folder:
            store, features = common.things_store(Path(folder), n)
            of_script = common.run(command(store, features, args.memory_encoder, Path(folder) / "run", 1))
            private, peak = common.apart(authors_memory, store, features, args.memory_encoder)
            print(
                f"memory, {args.memory_encoder}, {n:,} trials ({n * 63e-6:.2f} GB): ours {of_script['peak']:.2f} GB, "
                f"private {of_script['private']:.2f}; authors' way {peak:.2f} GB, private {private:.2f} or more"
            )


if __name__ == "__main__":
    main()

"""A baseline on the same store, protocol and rows as the decoders: `evaluate.py` puts it into the same table.

    python baseline.py --model eegnet --downstream_dataset BCICIV2a --datasets_dir data/BCICIV2a/processed_lmdb \
        --output_dir pth_downtasks/baselines/eegnet

linear_probe and mlp read the tokens that a language model reads (--foundation_dir, --token_pooling); ridge, knn, forest
and svm differential entropy (--de); the others read the signal, or, as best_constant and recording_only do, none. What
trains by epochs takes the best validation epoch; the test is decoded once. Leaves in --output_dir: decoded_test.jsonl,
results.json, run.json, and metrics.jsonl where there are epochs.
"""

import argparse
import json
from pathlib import Path

from datasets.alignment import ADAPTATIONS, ALIGNMENTS, METHODS
from datasets.description import DATASETS, one_of
from datasets.splits import PROTOCOLS, check_protocol, print_caution
from models import AUGMENTATIONS, BASELINES, ENCODERS, POOLINGS, choose
from utils import flags
from utils.errors import UserError, reason
from utils.script import check_one_process, run_script, start_script


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--model", **flags.named_in(BASELINES), required=True, help="which baseline")
    flags.add_dataset_flags(parser, one_of(list(DATASETS)), "which dataset's classes and montage")
    add("--output_dir", required=True, help="folder of the run")
    add("--epochs", type=flags.at_least(1), default=60, help="what trains by epochs: passes over the training trials")
    add(
        "--augment",
        nargs="+",
        choices=list(AUGMENTATIONS),
        default=[],
        help="what trains by epochs: what is changed at random in training batches",
    )
    add("--seed", type=int, default=0, help="of weights and order")
    add(
        "--shuffle_labels",
        action="store_true",
        help="the shuffled-label control: permuted within each recording, in all splits",
    )
    add("--cuda", type=int, default=0, help="GPU; -1: CPU")
    flags.add_store_flags(parser, "data/BCICIV2a/processed_lmdb", PROTOCOLS, check_protocol)
    flags.add_part_flags(parser, ALIGNMENTS, METHODS)
    flags.add_adapt_flag(add, [name for name, kind in ADAPTATIONS.items() if kind.changes != "encoder"])
    add("--granularity", help="EEGImageNet: all, coarse, fine0 … fine4 (default: all)")
    add(
        "--de",
        choices=("gaussian", "published"),
        default="gaussian",
        help="ridge, knn, forest, svm: gaussian: entropy of each band; published: EEG-ImageNet's sum over its bins",
    )
    flags.add_encoder_flags(parser, [name for name in ENCODERS if name in ("csbrain", "braindecode:")])
    add(
        "--token_pooling",
        choices=list(POOLINGS),
        default="region",
        help="linear_probe, mlp: how features become tokens",
    )
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import numpy as np

from datasets.store import description_of_store
from datasets.trials import TrialDataset, load_splits, part_of
from models.baselines import Data
from models.differential_entropy import BANDS, differential_entropy
from stages.adaptation import check_prior, set_straight
from stages.rows import Readout, most_likely, new_row, write_rows
from stages.runs import print_scores
from stages.scores import score_rows
from stages.tokens import augmentations, check_pretraining, checkpoint_facts, encoder_for, with_features
from utils.checkpoints import fingerprint
from utils.device import pick_device
from utils.files import environment, read_json, write_json, write_jsonl
from utils.progress import progress

READOUT = "classifier"


def read(dataset: TrialDataset, reads: str, de: str) -> Data:
    """A split as the baseline reads it."""
    x = None
    if reads == "tokens":
        x = dataset.tokens.numpy()  # (N, n, D)
    elif reads == "features":
        bar = progress(dataset.trials, desc=f"{dataset.mode} features", unit="trial", leave=False)
        features = [differential_entropy(dataset.samples(trial), dataset.sfreq, de) for trial in bar]
        x = np.stack(features) if features else np.zeros((0, len(BANDS) * len(dataset.montage.electrodes)), np.float32)
        if not np.isfinite(x).all():
            raise UserError(f"{dataset.store.path}: a {dataset.mode} trial holds NaN or infinity")
    elif reads == "signal":
        n_chans = len(dataset.montage.electrodes)
        empty = np.zeros((0, n_chans, dataset.n_times), np.float32)
        x = np.stack([dataset.samples(trial) for trial in dataset.trials]) if len(dataset) else empty  # (N, C, T)
        if not np.isfinite(x).all():
            raise UserError(f"{dataset.store.path}: a {dataset.mode} trial holds NaN or infinity")
    recordings = [(trial.session, trial.run) for trial in dataset.trials]
    groups, causal = dataset.aligned_together()
    return Data(x, np.array(dataset.labels, int), recordings, dataset.sfreq, groups, causal)


def main(args: argparse.Namespace) -> None:
    check_one_process()
    output_dir, device = Path(args.output_dir), pick_device(args.cuda)
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words, "BCICIV2a")
    args.downstream_dataset, args.protocol = description.name, args.protocol or description.protocol
    splits = load_splits(args.datasets_dir, description, args.protocol, part_of(vars(args)), args.granularity)
    description = splits["train"].description
    if description.parts and description.apart == "concept":
        raise UserError(
            f"{description.name} tests on concepts that are never trained on; classifiers know those of training only: "
            "retrieve.py ranks them"
        )
    if not args.window and description.looks_at:
        part = part_of(vars(args)) | {"window": description.looks_at}
        splits = {mode: dataset.part(**part) for mode, dataset in splits.items()}
    if not len(splits["test"]):
        raise UserError(f"{args.datasets_dir} has no test trials under --protocol {args.protocol}")
    if args.shuffle_labels:
        splits = {mode: dataset.shuffled(args.seed) for mode, dataset in splits.items()}
    check_prior(args.adapt, splits["test"])
    store = splits["train"].store
    depends_on = {"store": store.fingerprint, "list of trials": store.listed}

    # ------------------------------------------------------------ what it reads
    settings = {"n_classes": len(description.classes), "seed": args.seed, "epochs": args.epochs, "device": device}
    baseline, facts = choose(BASELINES, args.model)(**settings), {}
    if baseline.reads == "tokens":
        foundation = args.foundation_dir if args.use_pretrained_weights else None
        encoder = encoder_for(splits["train"], args.encoder, foundation, args.allow_partial, args.seed)
        if not encoder.pretrained:
            raise UserError(f"--encoder {args.encoder} has no weights yet, and --model {args.model} trains no encoder")
        check_pretraining(encoder, splits["test"])
        depends_on["encoder"] = fingerprint(encoder)
        facts = checkpoint_facts(encoder)
        splits, _ = with_features(splits, encoder, True, args.token_pooling, args.cache_dir, device)
    if args.augment and not hasattr(baseline, "augment"):
        raise UserError(f"--augment: --model {args.model} is not trained batch by batch")
    if args.augment:
        baseline.augment = augmentations(args.augment, baseline.reads, splits["train"])
    arguments = json.loads(json.dumps(vars(args), default=str))
    free = {"output_dir", "datasets_dir", "foundation_dir", "cache_dir", "cuda"}
    fixed = {k: v for k, v in arguments.items() if k not in free}
    record = {"arguments": arguments, "fixed": fixed, "depends_on": depends_on} | description.own_record()
    made = ("results.json", "last.pth", "decoded.jsonl")  # what a folder holds besides where something came of its run
    if (output_dir / "run.json").exists() and any((output_dir / name).exists() for name in made):
        before = read_json(output_dir / "run.json")
        if any(before.get(k) != record[k] for k in ("fixed", "depends_on")):
            raise UserError(f"{output_dir} holds another run; choose another folder")
    # before the training: who finds it knows that the tokens are cached
    write_json(record | facts | {"environment": environment()}, output_dir / "run.json")

    # ------------------------------------------------------------ training, validation, one look at the test
    train, val, test = (read(splits[mode], baseline.reads, args.de) for mode in ("train", "val", "test"))
    try:
        baseline.fit(train, val)
        probabilities = baseline.predict(test)  # (N, K)
    except (ValueError, np.linalg.LinAlgError) as error:  # what libraries say of trials that no decoder can be made of
        raise UserError(
            f"{args.datasets_dir}: {args.model} cannot be trained on these trials ({reason(error)})"
        ) from None
    rows = []
    for index, p in enumerate(probabilities.round(6).tolist()):
        readouts = {READOUT: Readout(most_likely(p), description.chance, p)}
        rows.append(new_row(splits["test"], index, readouts, "", ADAPTATIONS[args.adapt].uses))
    rows = set_straight(rows, args.adapt)
    for row in rows:
        row.text = description.canonical[row.readouts[READOUT].label]
    history = getattr(baseline, "history", [])
    scores = {readout: score.as_dict() for readout, score in score_rows(rows).items()}
    if history:  # in the form of all training runs, which the audit reads
        lines = [{"epoch": e["epoch"], "phase": "joint", "train_loss": e["train_loss"], "val": {}} for e in history]
        for line, epoch in zip(lines, history, strict=True):
            line["val"] = {READOUT: {"accuracy": epoch["accuracy"]}} if len(val) else {}
        write_jsonl(lines, output_dir / "metrics.jsonl")
    best = getattr(baseline, "best", None)
    write_rows(rows, output_dir / "decoded_test.jsonl")
    chosen_by = "nothing to choose" if not history else READOUT if len(val) else "none: the last epoch"
    # last of all: who finds it finds the rows as well
    results = {"best_epoch": best, "selected_by": chosen_by, "test": scores}
    write_json(results | ({"uses": rows[0].uses} if rows else {}), output_dir / "results.json")
    counts = " / ".join(str(len(data)) for data in (train, val, test))
    chosen = f"; epoch {best} of {len(history)} by validation" if history else ""
    print(f"{args.model} on {description.name}, {args.protocol}: {counts} train / val / test trials{chosen}")
    print_scores(score_rows(rows))
    print_caution(description, args.protocol)


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], "the same command begins anew")

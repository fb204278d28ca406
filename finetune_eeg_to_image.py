"""EEG → CLIP space: train the mapper from EEG tokens to an image model's conditioning, with a classifier head.

    python finetune_eeg_to_image.py --datasets_dir data/VisualImagery/processed_lmdb \
        --stimuli_dir data/VisualImagery/stimuli --output_dir pth_downtasks/eeg_direct \
        --epochs 20 --warmup_epochs 5 --batch_size 16 --lr 5e-4 --lambda_cls 5.0 --lambda_contrastive 2.0 \
        --lambda_cos 1.0 --lambda_mse 0.1 --temperature 0.5 --cuda 0
    python finetune_eeg_to_image.py … --mapper mlp                  # or linear: the published baselines
    python finetune_eeg_to_image.py … --encoder eegnet              # trained from scratch: needs no CSBrain.pth
    python finetune_eeg_to_image.py … --protocol loso:S03           # leave one subject out; or within:S03
    python finetune_eeg_to_image.py … --resume                      # go on after an interruption
    python finetune_eeg_to_image.py … --shuffle_labels              # the shuffled-label control

Leaves in --output_dir: mapper_epochN.pth, metrics.jsonl, learning_curve.png, run.json, results.json (the test score of
the best epoch by the head's validation accuracy, reloaded from disk) and decoded_test.jsonl.
README.md is the run's model card; model.safetensors with config.json is the best epoch a second time, for share.py.
"""

import argparse
import hashlib
from pathlib import Path

from datasets.alignment import ALIGNMENTS, METHODS
from datasets.description import one_of, with_words
from datasets.splits import PROTOCOLS, check_protocol
from models import AUGMENTATIONS, FEATURE_ENCODERS, MAPPERS, POOLINGS, choose
from stages.rows import MAPPER_READOUTS
from utils import flags
from utils.errors import UserError, loading
from utils.paths import cache_folder, default
from utils.script import run_script, start_script

# name of a loss term → (default weight, what it is); the terms themselves: LOSS_TERMS in models/eeg_clip_mapper.py
LAMBDAS = {
    "cls": (5.0, "the head's cross-entropy"),
    "contrastive": (2.0, "InfoNCE against the prototypes"),
    "cos": (1.0, "1 − cosine to the class's prototype"),
    "mse": (0.1, "the text states' squared error, off in warm-up"),
}
NOT_IN_WARMUP = {"mse"}


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    flags.add_dataset_flags(parser, one_of(with_words()), "which dataset's words, stimuli and montage")
    flags.add_store_flags(parser, "data/VisualImagery/processed_lmdb", PROTOCOLS, check_protocol)
    flags.add_part_flags(parser, ALIGNMENTS, METHODS)
    add("--stimuli_dir", help="folder of the stimulus photos (default: the dataset's own)")
    add("--output_dir", "--model_dir", default=default("pth_downtasks/eeg_direct"),
        help="folder for checkpoints, metrics and results")
    flags.add_encoder_flags(parser, FEATURE_ENCODERS)
    add("--warm_start", help="projection_epochN.pth of finetune_eeg_llm.py on the same dataset: take over its token "
        "pooling, and its encoder where that was trained")
    add("--mapper", choices=list(MAPPERS), default="qformer",
        help="qformer: the published mapper; mlp and linear: the published baselines (no Q-Former, linear probe)")
    add("--token_positions", choices=("none", "learned"), default="none",
        help="none: as published, blind to the order of the tokens; learned: an embedding a token")
    add("--clip_model", default="openai/clip-vit-large-patch14", help="CLIP: local folder or hub address")
    add("--image_model", default="runwayml/stable-diffusion-v1-5",
        help="image model whose text states are the mapper's target: local folder or hub address")
    add("--image_targets", choices=("image", "text"), default="image",
        help="a class's prototype: image: CLIP embedding of its photo; text: pooled vector of its prompt")
    add("--epochs", type=flags.at_least(1), default=20, help="epochs in all, warm-up included")
    add("--warmup_epochs", type=flags.at_least(0),
        help="epochs at --lr without the MSE term (default: 5, or all where there are fewer)")
    add("--batch_size", type=flags.at_least(1), default=16, help="trials an optimiser step and process")
    add("--eval_batch_size", type=flags.at_least(1), default=128, help="trials mapped at once in evaluation")
    add("--lr", type=flags.number, default=5e-4, help="learning rate of the warm-up")
    add("--joint_lr", type=flags.number, default=1e-4, help="learning rate after the warm-up")
    add("--dropout", type=flags.share, default=0.1, help="inside the mapper")
    for name, (weight, what) in LAMBDAS.items():
        add(f"--lambda_{name}", type=flags.number, default=weight, help=f"weight of {what}")
    add("--temperature", type=flags.positive, default=0.5, help="τ of InfoNCE")
    add("--select_by", choices=list(MAPPER_READOUTS), default="head",
        help="read-out whose validation accuracy picks the best epoch")
    flags.add_training_flags(parser, POOLINGS, AUGMENTATIONS)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    args.warmup_epochs = min(5, args.epochs) if args.warmup_epochs is None else args.warmup_epochs
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset

from datasets.store import description_of_store, read_words
from datasets.trials import load_splits, part_of
from models.eeg_clip_mapper import (
    CLIPImageTargetBuilder,
    CLIPTextTargetBuilder,
    EEGMapperModel,
    MapperBatch,
    mapper_loss,
    mean_pairwise_cosine,
)
from models.image_generator import image_model_address
from models.token_encoders import training_of
from stages.checkpoints import check_dataset, check_unseen, checkpoint_encoder, read_run_checkpoint
from stages.pictures import Stimuli
from stages.rows import mapper_readouts, new_row
from stages.runs import LAST, Run
from stages.scores import score_rows
from stages.tokens import augmentations, check_pretraining, checkpoint_facts, encoder_for, with_features
from utils.checkpoints import fingerprint, read_checkpoint
from utils.device import end_processes, resume_optimizer, scaler_state, start_accelerator
from utils.processes import dealt, mean_over
from utils.progress import progress
from utils.seeds import seed_everything

# ---------------------------------------------------------------- encoder, targets, one epoch, one evaluation


def start_encoder(args, dataset, description) -> tuple:
    """The encoder, its fingerprint before any training, and what --warm_start brings: its checkpoint, {} without one.

    With a warm start, args.encoder and args.token_pooling become its own. Raises UserError where it saw who is tested.
    """
    foundation = args.foundation_dir if args.use_pretrained_weights else None
    if not args.warm_start:
        args.token_pooling = args.token_pooling or "region"
        encoder = encoder_for(dataset["train"], args.encoder, foundation, args.allow_partial, args.seed)
        check_pretraining(encoder, dataset["test"])
        return encoder, fingerprint(encoder), {}
    path, warm = read_run_checkpoint(Path(args.warm_start), "text")
    check_dataset(path, warm, description)
    warm["seen"] = warm["seen"] if warm["encoder"] is not None else []  # a frozen encoder has seen nobody
    check_unseen(warm["seen"], warm["protocol"], dataset["test"], range(len(dataset["test"])), "--warm_start")
    if args.encoder not in ("csbrain", warm["encoder_name"]):
        raise UserError(f"--warm_start {args.warm_start} has the encoder {warm['encoder_name']}, not {args.encoder}")
    args.encoder, args.token_pooling = warm["encoder_name"], args.token_pooling or warm["token_pooling"]
    encoder = checkpoint_encoder(warm, path, dataset["train"], foundation, args.allow_partial, args.seed)
    check_pretraining(encoder, dataset["test"])
    frozen = "; the pooling has no weights, the encoder was frozen"
    print(
        f"warm start: {args.token_pooling} pooling{frozen if warm['encoder'] is None else ' and the trained encoder'}"
    )
    return encoder, warm["encoder_fingerprint"], warm


def start_dataset(args):  # noqa: ANN201 - DatasetDescription
    """The store's dataset; what nobody said of it, and the dataset knows, becomes args' own."""
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words, "VI")
    args.downstream_dataset, args.protocol = description.name, args.protocol or description.protocol
    args.stimuli_dir = args.stimuli_dir or description.images_dir or default("data/VisualImagery/stimuli")
    if not description.stimuli:
        raise UserError(f"--downstream_dataset {description.name} has no stimuli to map to")
    flags.check_phases(args)
    return description


def build_targets(args, description, image_model: str, cache_dir: Path) -> tuple:
    """A class's prototype (K, D), its prompt's text states (K, 77, D), and how alike the targets are, in words."""
    labels = range(len(description.classes))
    stimuli = Stimuli(description.stimuli, len(labels), Path(args.stimuli_dir))
    images = CLIPImageTargetBuilder(args.clip_model, cache_dir)
    texts = CLIPTextTargetBuilder(image_model, cache_dir)  # both models are known to be there before one is loaded
    image_vectors = images.build(stimuli.by_label)  # (K, D)
    text_states, text_vectors = texts.build([description.image_prompts[label] for label in labels])
    alike = (
        f"mean pairwise cosine of the targets: images {mean_pairwise_cosine(image_vectors):.2f}, texts "
        f"{mean_pairwise_cosine(text_vectors):.2f} (published: 0.54 and 0.90)"
    )
    prototypes = image_vectors if args.image_targets == "image" else text_vectors
    if prototypes.shape[-1] != text_states.shape[-1]:
        raise UserError(
            f"--clip_model gives vectors of width {prototypes.shape[-1]}, --image_model reads states of width "
            f"{text_states.shape[-1]}; the mapper needs both alike, as with CLIP ViT-L/14 and Stable Diffusion 1.5 or "
            "aMUSEd"
        )
    return prototypes, text_states, alike


def train_epoch(
    accelerator, model, loader, optimizer, targets, weights: dict, augment, args, bar
) -> tuple[float, dict]:
    """One pass over the training trials. Returns the mean loss and its unweighted parts."""
    model.train()
    total, totals = 0.0, dict.fromkeys(LAMBDAS, 0.0)
    for batch in loader:
        for change in augment:
            batch["x"], batch["label"] = change(batch["x"], batch["label"])
        outputs = (output.float() for output in model(batch["x"]))  # states, pooled, logits
        seen = MapperBatch(*outputs, batch["label"], *targets, args.temperature, args.label_smoothing)
        loss, parts = mapper_loss(seen, weights)
        loss, parts = batch["weight"] * loss, {name: batch["weight"] * part for name, part in parts.items()}
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        totals = {name: totals[name] + parts[name].detach() if name in parts else 0.0 for name in LAMBDAS}
        bar.update(len(batch["label"]) * accelerator.num_processes)
    mean = accelerator.reduce(torch.as_tensor(total / len(loader)), reduction="mean")
    return float(mean), {name: mean_over(accelerator, float(value) / len(loader)) for name, value in totals.items()}


@torch.no_grad()
def evaluate(accelerator, model, dataset, prototypes, args) -> list:
    """All read-outs of a split; one row a trial, in the split's order, on every process."""
    model = accelerator.unwrap_model(model).eval()
    mine = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    rows = []
    for batch in DataLoader(mine, args.eval_batch_size):
        with accelerator.autocast():
            outputs = model(batch["x"].to(accelerator.device))
        for index, readouts in zip(batch["index"].tolist(), mapper_readouts(outputs, prototypes), strict=True):
            text = dataset.description.canonical[readouts[args.select_by].label]
            rows.append(new_row(dataset, index, readouts, text))
    return sorted(gather_object(rows), key=lambda row: row.index)


def main(args: argparse.Namespace) -> None:
    description = start_dataset(args)

    # ------------------------------------------------------------ set-up
    # the baselines' text positions learn from the MSE term alone, which the warm-up leaves out
    accelerator, precision = start_accelerator(args.cuda, args.precision, 1, args.seed, idle_parameters=True)
    device = accelerator.device
    splits = load_splits(args.datasets_dir, description, args.protocol, part_of(vars(args)))
    if args.shuffle_labels:
        splits = {mode: dataset.shuffled(args.seed) for mode, dataset in splits.items()}
    encoder, encoder_fingerprint, warm = start_encoder(args, splits, description)

    # ------------------------------------------------------------ targets: photos and prompts in CLIP space
    store = splits["train"].store
    image_model = image_model_address(args.image_model)
    with accelerator.main_process_first():
        targets = build_targets(args, description, image_model, cache_folder(args.cache_dir, store.path))
    prototypes, text_states, alike = targets
    accelerator.print(alike)
    digest = hashlib.sha256(prototypes.numpy().tobytes() + text_states.numpy().tobytes()).hexdigest()
    depends_on = {"store": store.fingerprint, "list of trials": store.listed, "encoder": encoder_fingerprint}
    depends_on["set of targets: other photos, CLIP or image model"] = digest
    turn = accelerator.process_index, accelerator.num_processes
    run = Run(Path(args.output_dir), ["mapper_epoch{}.pth"], args.select_by, args.keep, turn)
    run.open(vars(args), {"output_dir", "stimuli_dir"}, depends_on)
    accelerator.wait_for_everyone()  # all have looked before the first one writes

    # ------------------------------------------------------------ EEG tokens: a frozen encoder runs once
    train_encoder = training_of(encoder, args.train_encoder, args.encoder_lora, args.layer_decay, args.seed)
    cached = train_encoder == "never" and not args.no_cache_features
    augment = augmentations(args.augment, "tokens" if cached else "signal", splits["train"])
    splits, reducer = with_features(splits, encoder, cached, args.token_pooling, args.cache_dir, device, turn)
    with torch.no_grad():
        x = splits["train"][0]["x"][None]
        n_tokens = (x if cached else reducer(encoder(x.to(next(encoder.parameters()).device)))).shape[1]

    # ------------------------------------------------------------ mapper
    seed_everything(args.seed)
    settings = {"n_classes": len(description.classes), "n_tokens": n_tokens, "clip_width": text_states.shape[-1],
                "token_positions": args.token_positions, "dropout": args.dropout, "in_dim": encoder.width}  # fmt: skip
    mapper = choose(MAPPERS, args.mapper)(**settings)
    model = EEGMapperModel(mapper, None if cached else encoder, None if cached else reducer, train_encoder)
    accelerator.print(
        f"{description.name}, {args.protocol}: {' / '.join(str(len(d)) for d in splits.values())} train / val / test "
        f"trials, {n_tokens} tokens; {args.mapper} mapper {sum(p.numel() for p in mapper.parameters()):,} parameters; "
        f"{precision}, {accelerator.num_processes} process(es) on {device}"
    )
    if run.state:
        with loading(*LAST):
            mapper.load_state_dict(run.state["mapper"])
            model.load_encoder(run.state["encoder"])
    model.requires_grad_(False)
    of_encoder = model.set_phase(joint=True)  # all that is ever trained, for the processes to agree on
    by_depth = model.encoder_groups(of_encoder, args.encoder_lr, args.layer_decay) or [{"params": []}]
    groups = [{"params": list(mapper.parameters())}, *by_depth]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)
    loader = dealt(accelerator, splits["train"], args.batch_size, args.seed)
    model, optimizer = accelerator.prepare(model, optimizer)
    with loading(*LAST):
        resume_optimizer(accelerator, optimizer, run.state)

    # ------------------------------------------------------------ training
    run.begin(splits, args.protocol, **checkpoint_facts(encoder), **description.own_record())
    seen = sorted({*splits["train"].seen, *splits["val"].seen, *warm.get("seen", ())})
    facts = {
        "dataset": description.name, "classes": list(description.classes), "encoder_name": args.encoder,
        "token_pooling": args.token_pooling, "encoder_fingerprint": encoder_fingerprint, **splits["train"].facts,
        "protocol": args.protocol, "seen": seen, "mapper_name": args.mapper, "settings": settings,
        "prototypes": prototypes, "image_targets": args.image_targets, "image_model": image_model,
        "words": read_words(Path(args.words)) if args.words else None,
    }  # fmt: skip
    targets = prototypes.to(device), text_states.to(device)
    for epoch in run.epochs(args.epochs):
        joint = epoch > args.warmup_epochs
        phase, lr = ("joint", args.joint_lr) if joint else ("warmup", args.lr)
        accelerator.unwrap_model(model).set_phase(joint)
        optimizer.param_groups[0]["lr"] = lr  # the mapper's
        # each epoch seeds everything anew, so a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        loader.set_epoch(epoch)
        weights = {name: getattr(args, f"lambda_{name}") for name in LAMBDAS if joint or name not in NOT_IN_WARMUP}
        name, n = f"epoch {epoch}/{args.epochs} ({phase})", len(splits["train"])
        bar = progress(total=n, desc=name, unit="trial", disable=not accelerator.is_main_process)
        with bar:
            loss, parts = train_epoch(accelerator, model, loader, optimizer, targets, weights, augment, args, bar)
        run.trained(loss, "lower --lr, or look at the weights of the terms")
        rows = evaluate(accelerator, model, splits["val"], targets[0], args)
        plain = accelerator.unwrap_model(model)
        # what is frozen now is kept where it is not the published encoder: trained before, or by a warm start
        kept = plain.encoder_state() if of_encoder else warm.get("encoder")
        weights = {"mapper": plain.mapper.state_dict(), "encoder": kept}
        state = {"optimizer": optimizer.state_dict(), "scaler": scaler_state(accelerator)} | weights
        state["encoder"] = plain.encoder_state(merge=False)
        said = run.save_epoch(loss, score_rows(rows), [facts | weights], state, phase, loss_parts=parts, lr=lr)
        accelerator.wait_for_everyone()
        accelerator.print(said)

    # ------------------------------------------------------------ test: the best epoch, reloaded from disk
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    checkpoint = read_checkpoint(run.best_file())
    model.mapper.load_state_dict(checkpoint["mapper"])
    if of_encoder:
        model.load_encoder(checkpoint["encoder"])
    run.finish(evaluate(accelerator, model, splits["test"], targets[0], args), args.shuffle_labels)
    end_processes(accelerator)


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume")

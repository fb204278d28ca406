"""EEG → CLIP space: train the mapper from EEG tokens to an image model's conditioning, with a classifier head.

    python finetune_eeg_to_image.py --datasets_dir data/VisualImagery/processed_lmdb \
        --stimuli_dir data/VisualImagery/stimuli --foundation_dir pth/CSBrain.pth --output_dir pth_downtasks/eeg_direct \
        --epochs 20 --warmup_epochs 5 --batch_size 16 --lr 5e-4 --lambda_cls 5.0 --lambda_contrastive 2.0 \
        --lambda_cos 1.0 --lambda_mse 0.1 --temperature 0.5 --cuda 0
    python finetune_eeg_to_image.py … --mapper mlp                  # or linear: the published baselines
    python finetune_eeg_to_image.py … --encoder eegnet              # trained from scratch: needs no CSBrain.pth
    python finetune_eeg_to_image.py … --protocol loso:S03           # leave one subject out; or within:S03
    python finetune_eeg_to_image.py … --resume                      # go on after an interruption
    python finetune_eeg_to_image.py … --shuffle_labels              # the shuffled-label control

Leaves in --output_dir: mapper_epochN.pth, metrics.jsonl, learning_curve.png, run.json, results.json (the test score of
the best epoch by the head's validation accuracy, reloaded from disk) and decoded_test.jsonl.
"""

import argparse
import hashlib
import math
import time
from pathlib import Path

from datasets.description import load_description, with_words
from datasets.splits import check_protocol
from models import FEATURE_ENCODERS, MAPPERS, POOLINGS
from stages.rows import MAPPER_READOUTS
from utils import flags
from utils.errors import UserError, loading, run_script, start_script
from utils.paths import cache_folder, default

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
    add = parser.add_argument
    add("--downstream_dataset", choices=with_words(), default="VI", help="which dataset's words, stimuli and montage")
    flags.add_store_flags(parser, "data/VisualImagery/processed_lmdb", check_protocol)
    flags.add_part_flags(parser)
    add("--stimuli_dir", default=default("data/VisualImagery/stimuli"), help="folder of the stimulus photos")
    add("--output_dir", "--model_dir", default=default("pth_downtasks/eeg_direct"),
        help="folder for checkpoints, metrics and results")  # fmt: skip
    flags.add_encoder_flags(parser, FEATURE_ENCODERS)
    add("--warm_start", help="projection_epochN.pth of finetune_eeg_llm.py on the same dataset: take over its token "
        "pooling, and its encoder where that was trained")  # fmt: skip
    add("--mapper", choices=list(MAPPERS), default="qformer",
        help="qformer: the published mapper; mlp and linear: the published baselines (no Q-Former, linear probe)")  # fmt: skip
    add("--token_positions", choices=("none", "learned"), default="none",
        help="none: as published, blind to the order of the tokens; learned: an embedding a token")  # fmt: skip
    add("--clip_model", default="openai/clip-vit-large-patch14", help="CLIP: local folder or hub address")
    add("--image_model", default="runwayml/stable-diffusion-v1-5",
        help="image model whose text states are the mapper's target: local folder or hub address")  # fmt: skip
    add("--image_targets", choices=("image", "text"), default="image",
        help="a class's prototype: image: CLIP embedding of its photo; text: pooled vector of its prompt")  # fmt: skip
    add("--epochs", type=int, default=20, help="epochs in all, warm-up included")
    add("--warmup_epochs", type=int,
        help="epochs at --lr without the MSE term (default: 5, or all where there are fewer)")  # fmt: skip
    add("--batch_size", type=int, default=16, help="trials an optimiser step and process")
    add("--eval_batch_size", type=int, default=128, help="trials mapped at once in evaluation")
    add("--lr", type=float, default=5e-4, help="learning rate of the warm-up")
    add("--joint_lr", type=float, default=1e-4, help="learning rate after the warm-up")
    add("--dropout", type=float, default=0.1, help="inside the mapper")
    for name, (weight, what) in LAMBDAS.items():
        add(f"--lambda_{name}", type=float, default=weight, help=f"weight of {what}")
    add("--temperature", type=float, default=0.5, help="τ of InfoNCE")
    add("--select_by", choices=list(MAPPER_READOUTS), default="head",
        help="read-out whose validation accuracy picks the best epoch")  # fmt: skip
    flags.add_training_flags(parser, POOLINGS)
    args = parser.parse_args()
    args.warmup_epochs = min(5, args.epochs) if args.warmup_epochs is None else args.warmup_epochs
    if not load_description(args.downstream_dataset).stimuli:
        parser.error(f"--downstream_dataset {args.downstream_dataset} has no stimuli to map to")
    flags.check_at_least(parser, args, epochs=1, batch_size=1, eval_batch_size=1, seed=0, warmup_epochs=0)
    flags.check_numbers(
        parser, args, "lr", "joint_lr", "encoder_lr", "weight_decay", "clip", *(f"lambda_{n}" for n in LAMBDAS)
    )
    flags.check_share(parser, args, "label_smoothing", "dropout")
    flags.check_phases(parser, args)
    if not (math.isfinite(args.temperature) and args.temperature > 0):
        parser.error("--temperature must be positive")
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset

from datasets.trials import load_splits
from models import choose
from models.eeg_clip_mapper import (
    CLIPImageTargetBuilder,
    CLIPTextTargetBuilder,
    EEGMapperModel,
    MapperBatch,
    mapper_loss,
    mean_pairwise_cosine,
)
from models.image_generator import image_model_address
from stages.decoding import FOR_TEXT, check_unseen, checkpoint_encoder, read_run_checkpoint
from stages.pictures import Stimuli
from stages.rows import mapper_readouts, new_row
from stages.runs import LAST, best_epoch, finish_run, keep_epochs, open_run, save_history, validation_line
from stages.scores import score_rows
from stages.tokens import encoder_for, give_tokens
from utils.checkpoints import fingerprint, read_checkpoint, save_checkpoint
from utils.device import start_accelerator
from utils.files import write_json
from utils.progress import progress
from utils.seeds import seed_everything

FILES = ("mapper_epoch{}.pth",)  # an epoch's

# ---------------------------------------------------------------- targets, one epoch, one evaluation


def build_targets(args, description, image_model: str, cache_dir: Path) -> tuple:
    """A class's prototype (K, D), its prompt's text states (K, 77, D), and how alike the targets are, in words."""
    labels = range(len(description.classes))
    stimuli = Stimuli(description.stimuli, len(labels), Path(args.stimuli_dir))
    images = CLIPImageTargetBuilder(args.clip_model, cache_dir)
    texts = CLIPTextTargetBuilder(image_model, cache_dir)  # both models are known to be there before one is loaded
    image_vectors = images.build(stimuli.by_label)  # (K, D)
    text_states, text_vectors = texts.build([description.image_prompts[label] for label in labels])
    alike = (f"mean pairwise cosine of the targets: images {mean_pairwise_cosine(image_vectors):.2f}, "
             f"texts {mean_pairwise_cosine(text_vectors):.2f} (published: 0.54 and 0.90)")  # fmt: skip
    prototypes = image_vectors if args.image_targets == "image" else text_vectors
    if prototypes.shape[-1] != text_states.shape[-1]:
        raise UserError(
            f"--clip_model gives vectors of width {prototypes.shape[-1]}, --image_model reads states of width "
            f"{text_states.shape[-1]}; the mapper needs both alike, as with CLIP ViT-L/14 and Stable Diffusion 1.5 or aMUSEd"
        )
    return prototypes, text_states, alike


def train_epoch(accelerator, model, loader, optimizer, targets, args, joint: bool, bar) -> tuple[float, dict]:
    """One pass over the training trials. Returns the mean loss and its unweighted parts."""
    model.train()
    weights = {name: getattr(args, f"lambda_{name}") for name in LAMBDAS if joint or name not in NOT_IN_WARMUP}
    total, totals = 0.0, dict.fromkeys(LAMBDAS, 0.0)
    for batch in loader:
        states, pooled, logits = (output.float() for output in model(batch["x"]))
        loss, parts = mapper_loss(
            MapperBatch(states, pooled, logits, batch["label"], *targets, args.temperature, args.label_smoothing),
            weights,
        )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        totals = {name: totals[name] + parts[name].detach() if name in parts else 0.0 for name in LAMBDAS}
        bar.update(len(batch["label"]) * accelerator.num_processes)
    mean = accelerator.reduce(torch.as_tensor(total / len(loader)), reduction="mean")
    return float(mean), {name: float(value) / len(loader) for name, value in totals.items()}


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
    output_dir = Path(args.output_dir)
    description = load_description(args.downstream_dataset)

    # ------------------------------------------------------------ set-up
    # the baselines' text positions learn from the MSE term alone, which the warm-up leaves out
    accelerator, precision = start_accelerator(args.cuda, args.precision, 1, args.seed, idle_parameters=True)
    say = accelerator.print
    splits = load_splits(args.datasets_dir, description, args.protocol, args.window, args.regions)
    if args.shuffle_labels:
        for dataset in splits.values():
            dataset.shuffle_labels(args.seed)
    warm, warm_seen = {}, []
    if args.warm_start:
        warm = read_run_checkpoint(Path(args.warm_start), FOR_TEXT, "finetune_eeg_llm.py", description)
        warm_seen = warm["seen"] if warm["encoder"] is not None else []  # a frozen encoder has seen nobody
        check_unseen(warm_seen, warm["protocol"], splits["test"], range(len(splits["test"])), "--warm_start")
        if args.encoder not in ("csbrain", warm["encoder_name"]):
            raise UserError(
                f"--warm_start {args.warm_start} has the encoder {warm['encoder_name']}, not {args.encoder}"
            )
    args.encoder = warm.get("encoder_name") or args.encoder
    args.token_pooling = args.token_pooling or warm.get("token_pooling") or "region"
    foundation = args.foundation_dir if args.use_pretrained_weights else None
    if warm:
        encoder = checkpoint_encoder(
            warm, Path(args.warm_start), splits["train"], foundation, args.allow_partial, args.seed
        )
        encoder_fingerprint = warm["encoder_fingerprint"]  # as it was before it was trained
    else:
        encoder = encoder_for(splits["train"], args.encoder, foundation, args.allow_partial, args.seed)
        encoder_fingerprint = fingerprint(encoder)
    if warm:
        say(f"warm start: {args.token_pooling} pooling"
            + (" and the trained encoder" if warm.get("encoder") is not None else "; the pooling has no weights, the encoder was frozen"))  # fmt: skip

    # ------------------------------------------------------------ targets: photos and prompts in CLIP space
    cache_dir = cache_folder(args.cache_dir, splits["train"].store.path)
    image_model = image_model_address(args.image_model)
    with accelerator.main_process_first():
        prototypes, text_states, alike = build_targets(args, description, image_model, cache_dir)
    say(alike)
    digest = hashlib.sha256(prototypes.numpy().tobytes() + text_states.numpy().tobytes()).hexdigest()
    depends_on = {
        "store": splits["train"].store.fingerprint, "list of trials": splits["train"].store.listed,
        "encoder": encoder_fingerprint,
        "set of targets: other photos, CLIP or image model": digest,
    }  # fmt: skip
    record, state = open_run(output_dir, vars(args), {"output_dir", "stimuli_dir"}, depends_on, "mapper_epoch*.pth")
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    targets = prototypes.to(accelerator.device), text_states.to(accelerator.device)

    # ------------------------------------------------------------ EEG tokens: a frozen encoder runs once
    cached = encoder.pretrained and not (args.no_cache_features or args.train_encoder)
    with accelerator.main_process_first():
        reducer = give_tokens(splits.values(), encoder, cached, args.token_pooling, args.cache_dir, accelerator.device)
    with torch.no_grad():
        x = splits["train"][0]["x"][None]
        n_tokens = (x if cached else reducer(encoder(x.to(next(encoder.parameters()).device)))).shape[1]

    # ------------------------------------------------------------ mapper
    seed_everything(args.seed)
    settings = {
        "n_classes": len(description.classes), "n_tokens": n_tokens, "clip_width": text_states.shape[-1],
        "token_positions": args.token_positions, "dropout": args.dropout, "in_dim": encoder.width,
    }  # fmt: skip
    mapper = choose(MAPPERS, args.mapper)(**settings)
    train_encoder = "joint" if args.train_encoder else "never"
    model = EEGMapperModel(
        mapper, None if cached else encoder, None if cached else reducer,
        train_encoder if encoder.pretrained else "always",
    )  # fmt: skip
    say(
        f"{description.name}, {args.protocol}: {' / '.join(str(len(d)) for d in splits.values())} train / val / test "
        f"trials, {n_tokens} tokens; {args.mapper} mapper {sum(p.numel() for p in mapper.parameters()):,} parameters; "
        f"{precision}, {accelerator.num_processes} process(es) on {accelerator.device}"
    )
    if state:
        with loading(*LAST):
            mapper.load_state_dict(state["mapper"])
            if state["encoder"] is not None:
                model.encoder.load_state_dict(state["encoder"])
    of_encoder = [] if cached or model.train_encoder == "never" else encoder.trainable_parameters()
    optimizer = torch.optim.AdamW([{"params": list(mapper.parameters())}, {"params": of_encoder}],
                                  lr=args.lr, weight_decay=args.weight_decay)  # fmt: skip
    loader = DataLoader(splits["train"], args.batch_size, shuffle=True)
    model.requires_grad_(False)
    model.set_phase(joint=True)  # all that is ever trained, for the processes to agree on
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if state:
        with loading(*LAST):
            optimizer.load_state_dict(state["optimizer"])
            if accelerator.scaler is not None and state["scaler"]:
                accelerator.scaler.load_state_dict(state["scaler"])

    # ------------------------------------------------------------ training
    if accelerator.is_main_process and not state:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(record | {"num_processes": accelerator.num_processes}, output_dir / "run.json")
    facts = {
        "dataset": description.name, "classes": list(description.classes), "encoder_name": args.encoder,
        "token_pooling": args.token_pooling, "encoder_fingerprint": encoder_fingerprint,
        **splits["train"].facts,
        "protocol": args.protocol, "seen": sorted({*splits["train"].sessions, *splits["val"].sessions, *warm_seen}), "mapper_name": args.mapper,
        "settings": settings, "prototypes": prototypes, "image_targets": args.image_targets, "image_model": image_model,
    }  # fmt: skip
    history = state.get("history", [])
    if accelerator.is_main_process and history:  # it may have been killed before this
        keep_epochs(output_dir, history, args.keep, args.select_by, FILES)
    for epoch in range(len(history) + 1, args.epochs + 1):
        joint = epoch > args.warmup_epochs
        accelerator.unwrap_model(model).set_phase(joint)
        encoder_lr = encoder.lr if args.encoder_lr is None else args.encoder_lr
        for group, lr in zip(optimizer.param_groups, (args.joint_lr if joint else args.lr, encoder_lr), strict=True):
            group["lr"] = lr
        # each epoch seeds everything anew, so a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        loader.set_epoch(epoch)
        started = time.perf_counter()
        bar = progress(total=len(splits["train"]), desc=f"epoch {epoch}/{args.epochs} ({'joint' if joint else 'warmup'})",
                       unit="trial", disable=not accelerator.is_main_process)  # fmt: skip
        with bar:
            train_loss, parts = train_epoch(accelerator, model, loader, optimizer, targets, args, joint, bar)
        if not math.isfinite(train_loss):
            raise UserError(
                f"the loss of epoch {epoch} is {train_loss}; lower --lr, or look at the weights of the terms"
            )
        rows = evaluate(accelerator, model, splits["val"], targets[0], args)
        val = {readout: result.as_dict() for readout, result in score_rows(rows).items()}
        history.append({
            "epoch": epoch, "phase": "joint" if joint else "warmup", "train_loss": train_loss, "loss_parts": parts,
            "lr": optimizer.param_groups[0]["lr"], "val": val,
        })  # fmt: skip
        if accelerator.is_main_process:
            plain = accelerator.unwrap_model(model)
            # what is frozen now is kept where it is not the published encoder: trained before, or by a warm start
            kept = plain.encoder.state_dict() if of_encoder else warm.get("encoder")
            weights = {"mapper": plain.mapper.state_dict(), "encoder": kept}
            save_checkpoint(facts | {"epoch": epoch} | weights, output_dir / f"mapper_epoch{epoch}.pth")
            save_history(history, {"seconds": time.perf_counter() - started}, description.chance, output_dir)
            save_checkpoint({
                "history": history, "optimizer": optimizer.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "mapper": weights["mapper"], "encoder": kept if of_encoder else None,
            }, output_dir / "last.pth")  # fmt: skip
            keep_epochs(output_dir, history, args.keep, args.select_by, FILES)
        accelerator.wait_for_everyone()
        say(f"epoch {epoch} ({history[-1]['phase']}): loss {train_loss:.4f}, validation {validation_line(val)}")

    # ------------------------------------------------------------ the best epoch, reloaded from disk, on the test trials
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    best = best_epoch(history, args.select_by)
    checkpoint = read_checkpoint(output_dir / f"mapper_epoch{best['epoch']}.pth")
    model.mapper.load_state_dict(checkpoint["mapper"])
    if of_encoder:
        model.encoder.load_state_dict(checkpoint["encoder"])
    rows = evaluate(accelerator, model, splits["test"], targets[0], args)
    if accelerator.is_main_process:
        finish_run(output_dir, rows, best, args.select_by, args.shuffle_labels)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(
        lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume"
    )  # fmt: skip

"""EEG → text: train the projection, then projection and LoRA, of a language model that reads EEG tokens.

    python finetune_eeg_llm.py --downstream_dataset BCICIV2a --datasets_dir data/BCICIV2a/processed_lmdb \
        --model_dir pth_downtasks/eeg_llm_bcic_new --foundation_dir pth/CSBrain.pth
    python finetune_eeg_llm.py … --encoder eegnet                   # trained from scratch: needs no CSBrain.pth
    python finetune_eeg_llm.py … --protocol loso:A03                # leave one subject out; or within:A03
    accelerate launch --multi_gpu --num_processes 2 finetune_eeg_llm.py …             # several GPUs
    accelerate launch --multi_gpu --num_processes 2 finetune_eeg_llm.py … --cuda -1   # several CPU processes
    python finetune_eeg_llm.py … --resume                           # go on after an interruption
    python finetune_eeg_llm.py … --shuffle_labels                   # the shuffled-label control

Leaves in --model_dir: projection_epochN.pth, lora_epochN/, metrics.jsonl, learning_curve.png, run.json, results.json
(the test score of the best epoch, reloaded from disk) and decoded_test.jsonl.
"""

import argparse
import math
import time
from pathlib import Path

from datasets.description import load_description, with_words
from datasets.splits import check_protocol
from models import FEATURE_ENCODERS, POOLINGS
from stages.rows import TEXT_READOUTS
from utils import flags
from utils.errors import UserError, loading, run_script, start_script

MIN_LR = 1e-6  # where the cosine ends


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    epochs = ", ".join(f"{name} {load_description(name).epochs}" for name in with_words())
    warmup = ", ".join(f"{name} {load_description(name).warmup_epochs}" for name in with_words())
    add("--downstream_dataset", choices=with_words(), required=True, help="which dataset's words and montage")
    flags.add_store_flags(parser, None, check_protocol)
    flags.add_part_flags(parser)
    add("--model_dir", required=True, help="folder for checkpoints, metrics and results")
    flags.add_encoder_flags(parser, FEATURE_ENCODERS)
    add("--llm", default="TinyLlama/TinyLlama-1.1B-Chat-v1.0", help="chat model: local folder or hub address")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--lora_r", type=int, default=8, help="LoRA's rank")
    add("--lora_alpha", type=float, default=16, help="LoRA's scale")
    add("--lora_targets", nargs="+", default=["q_proj", "v_proj"], help="linear layers that get LoRA")
    add("--epochs", type=int, help=f"epochs in all, warm-up included (default: {epochs})")
    add("--warmup_epochs", type=int, help=f"epochs without LoRA (default: {warmup})")
    add("--batch_size", type=int, default=4, help="trials a micro-batch and process")
    add("--gradient_accumulation_steps", type=int, default=8, help="micro-batches an optimiser step")
    add("--eval_batch_size", type=int, default=32, help="trials decoded at once")
    add("--warmup_lr", type=float, default=5e-4, help="peak learning rate of the warm-up phase")
    add("--lr", type=float, default=2e-4, help="peak learning rate of the joint phase")
    add("--max_new_tokens", type=int, default=64, help="longest decoded text, in tokens")
    add("--select_by", choices=list(TEXT_READOUTS), default="keyword",
        help="read-out whose validation accuracy picks the best epoch")  # fmt: skip
    flags.add_training_flags(parser, POOLINGS)
    args = parser.parse_args()
    description = load_description(args.downstream_dataset)
    args.epochs = description.epochs if args.epochs is None else args.epochs
    args.warmup_epochs = (
        min(description.warmup_epochs, args.epochs) if args.warmup_epochs is None else args.warmup_epochs
    )
    args.token_pooling = args.token_pooling or "region"
    flags.check_at_least(
        parser, args, epochs=1, batch_size=1, gradient_accumulation_steps=1, eval_batch_size=1, seed=0, lora_r=1,
        max_new_tokens=1,
    )  # fmt: skip
    flags.check_numbers(parser, args, "warmup_lr", "lr", "encoder_lr", "weight_decay", "clip", "lora_alpha")
    flags.check_share(parser, args, "label_smoothing")
    flags.check_phases(parser, args)
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset

from datasets.trials import TextCollator, load_splits
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model, load_lora, lora_facts
from stages.pieces import DecodedPieces
from stages.rows import new_row, text_readouts
from stages.runs import LAST, best_epoch, finish_run, keep_epochs, open_run, save_history, validation_line
from stages.scores import score_rows
from stages.tokens import encoder_for, give_tokens
from utils.checkpoints import fingerprint, read_checkpoint, save_checkpoint
from utils.device import PRECISIONS, start_accelerator
from utils.files import write_json
from utils.paths import written_whole
from utils.progress import progress
from utils.seeds import seed_everything

FILES = ("projection_epoch{}.pth", "lora_epoch{}")  # an epoch's

# ---------------------------------------------------------------- one epoch, one evaluation


def train_epoch(accelerator, model, loader, optimizer, schedule, args, bar) -> float:
    """One pass over the training trials; the last, partial accumulation group counts in full. Returns the mean loss."""
    model.train()
    with accelerator.autocast():
        accelerator.unwrap_model(model).read_prefix()
    group, n_batches, total = args.gradient_accumulation_steps, len(loader), 0.0
    for step, batch in enumerate(loader):
        in_group = min(group, n_batches - step // group * group)
        with accelerator.accumulate(model):
            loss = model(batch["x"], batch["target_ids"], batch["target_mask"], args.label_smoothing)
            accelerator.backward(loss * group / in_group)  # accelerate divides by `group`, which the last may not fill
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_((p for g in optimizer.param_groups for p in g["params"]), args.clip)
            optimizer.step()
            if accelerator.sync_gradients:
                schedule.step()
            optimizer.zero_grad()
        total += loss.detach()
        bar.update(len(batch["label"]) * accelerator.num_processes)
    return float(accelerator.reduce(torch.as_tensor(total / n_batches), reduction="mean"))


def evaluate(accelerator, model, dataset, args, name: str, keep_in: Path | None = None) -> list:
    """Decode a split with all read-outs; one row a trial, in the split's order, on every process.

    keep_in : Path, optional. Folder where each batch is kept until all are decoded.
    """
    model = accelerator.unwrap_model(model).eval()
    mine = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    rows, pieces = [], None
    if keep_in:
        settings = {"precision": accelerator.mixed_precision, "device": accelerator.device.type,
                    "batch_size": args.eval_batch_size, "max_new_tokens": args.max_new_tokens}  # fmt: skip
        pieces = DecodedPieces(keep_in, model, dataset, mine, accelerator.process_index, **settings)
    with accelerator.autocast():
        model.read_prefix()
    batches = DataLoader(Subset(dataset, mine), args.eval_batch_size)
    bar = progress(batches, desc=name, unit="batch", leave=False, disable=not accelerator.is_main_process)
    for number, batch in enumerate(bar):
        decoded = pieces.get(number) if pieces else None  # what an interrupted run has decoded already
        if decoded is None:
            with accelerator.autocast():
                texts, scores = model.decode(
                    batch["x"].to(accelerator.device), dataset.description.canonical, args.max_new_tokens
                )
            decoded = [(text, score.softmax(0).tolist()) for text, score in zip(texts, scores.cpu(), strict=True)]
            if pieces:
                pieces.add(decoded)
        for index, (text, probabilities) in zip(batch["index"].tolist(), decoded, strict=True):
            rows.append(new_row(dataset, index, text_readouts(dataset.description, text, probabilities), text))
    return sorted(gather_object(rows), key=lambda row: row.index)


def main(args: argparse.Namespace) -> None:
    model_dir = Path(args.model_dir)
    description = load_description(args.downstream_dataset)

    # ------------------------------------------------------------ set-up
    accelerator, precision = start_accelerator(args.cuda, args.precision, args.gradient_accumulation_steps, args.seed)
    say = accelerator.print
    splits = load_splits(args.datasets_dir, description, args.protocol, args.window, args.regions)
    if args.shuffle_labels:
        for dataset in splits.values():
            dataset.shuffle_labels(args.seed)
    encoder = encoder_for(
        splits["train"], args.encoder, args.foundation_dir if args.use_pretrained_weights else None,
        args.allow_partial, args.seed,
    )  # fmt: skip
    encoder_fingerprint = fingerprint(encoder)
    store = splits["train"].store
    depends_on = {"store": store.fingerprint, "list of trials": store.listed, "encoder": encoder_fingerprint}
    record, state = open_run(model_dir, vars(args), {"model_dir"}, depends_on, "projection_epoch*.pth")
    accelerator.wait_for_everyone()  # all have looked before the first one writes

    # ------------------------------------------------------------ language model, LoRA, projection
    dtype = PRECISIONS[precision]
    language_model, tokenizer = load_language_model(args.llm, accelerator.device, not args.no_quantize, dtype)
    seed_everything(args.seed)
    language_model = add_lora(language_model, args.lora_r, args.lora_alpha, args.lora_targets)
    projection = EEGProjection(language_model.get_input_embeddings().weight.shape[1], encoder.width)

    # ------------------------------------------------------------ EEG tokens: a frozen encoder runs once
    cached = encoder.pretrained and not (args.no_cache_features or args.train_encoder)
    with accelerator.main_process_first():
        reducer = give_tokens(splits.values(), encoder, cached, args.token_pooling, args.cache_dir, accelerator.device)
    train_encoder = "joint" if args.train_encoder else "never"
    model = EEGLanguageModel(
        language_model, tokenizer, description.system_prompt, description.user_prompt, projection,
        None if cached else encoder, None if cached else reducer, train_encoder if encoder.pretrained else "always",
    ).to(accelerator.device)  # fmt: skip
    say(
        f"{description.name}, {args.protocol}: {' / '.join(str(len(d)) for d in splits.values())} train / val / test "
        f"trials, tokens: {len(reducer.groups)} groups × {encoder.width} features; projection "
        f"{sum(p.numel() for p in projection.parameters()):,} and LoRA {sum(p.numel() for p in model.lora_parameters()):,} "
        f"parameters; {'4-bit NF4' if not args.no_quantize else 'full'} language model, {precision}, "
        f"{accelerator.num_processes} process(es) on {accelerator.device}"
    )

    # ------------------------------------------------------------ training
    if accelerator.is_main_process and not state:
        model_dir.mkdir(parents=True, exist_ok=True)
        write_json(record | {"num_processes": accelerator.num_processes}, model_dir / "run.json")
    collator = TextCollator(description, tokenizer, args.seed)
    history, phase, optimizer = state.get("history", []), None, None
    if accelerator.is_main_process and history:  # it may have been killed before this
        keep_epochs(model_dir, history, args.keep, args.select_by, FILES)
    for epoch in range(len(history) + 1, args.epochs + 1):
        joint = epoch > args.warmup_epochs
        if phase != ("joint" if joint else "warmup"):  # a new phase: what is trained, its optimiser, its schedule
            phase = "joint" if joint else "warmup"
            if optimizer is not None:
                model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
                accelerator.free_memory()
            elif history:
                with loading(*LAST):
                    load_trained(model, state)
            trained, of_encoder = model.set_phase(joint)
            groups = [{"params": trained, "lr": args.lr if joint else args.warmup_lr}]
            if of_encoder:
                groups.append({"params": of_encoder, "lr": encoder.lr if args.encoder_lr is None else args.encoder_lr})
            optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay)
            loader = DataLoader(splits["train"], args.batch_size, shuffle=True, collate_fn=collator)
            model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
            epochs = args.epochs - args.warmup_epochs if joint else args.warmup_epochs
            steps = epochs * math.ceil(len(loader) / args.gradient_accumulation_steps)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, max(steps, 1), MIN_LR)
            if history and history[-1]["phase"] == phase:  # resumed within this phase
                with loading(*LAST):
                    optimizer.load_state_dict(state["optimizer"])
                    schedule.load_state_dict(state["schedule"])
                    if accelerator.scaler is not None and state["scaler"]:
                        accelerator.scaler.load_state_dict(state["scaler"])

        # each epoch seeds everything anew, so a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        loader.set_epoch(epoch)
        collator.epoch = epoch
        started = time.perf_counter()
        bar = progress(total=len(splits["train"]), desc=f"epoch {epoch}/{args.epochs} ({phase})", unit="trial",
                       disable=not accelerator.is_main_process)  # fmt: skip
        with bar:
            train_loss = train_epoch(accelerator, model, loader, optimizer, schedule, args, bar)
        if not math.isfinite(train_loss):
            raise UserError(f"the loss of epoch {epoch} is {train_loss}; lower --lr, or use --precision bf16 or fp32")
        seconds = {"train_seconds": time.perf_counter() - started}
        rows = evaluate(accelerator, model, splits["val"], args, "validation")
        seconds["seconds"] = time.perf_counter() - started
        val = {readout: result.as_dict() for readout, result in score_rows(rows).items()}
        history.append({
            "epoch": epoch, "phase": phase, "train_loss": train_loss, "lr": schedule.get_last_lr()[0], "val": val,
        })  # fmt: skip
        if accelerator.is_main_process:
            facts = {
                "dataset": description.name, "classes": list(description.classes), "encoder_name": args.encoder,
                "token_pooling": args.token_pooling, "encoder_fingerprint": encoder_fingerprint,
                **splits["train"].facts,
                "protocol": args.protocol, "seen": [*splits["train"].sessions, *splits["val"].sessions],
                "llm": str(Path(args.llm).resolve()) if Path(args.llm).is_dir() else args.llm,
            }  # fmt: skip
            save_history(history, seconds, description.chance, model_dir)
            save_epoch(model_dir, accelerator, model, optimizer, schedule, history, facts)
            keep_epochs(model_dir, history, args.keep, args.select_by, FILES)
        accelerator.wait_for_everyone()
        say(f"epoch {epoch} ({phase}): loss {train_loss:.4f}, validation {validation_line(val)}")

    # ------------------------------------------------------------ the best epoch, reloaded from disk, on the test trials
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    best = best_epoch(history, args.select_by)
    best_file, lora_dir = model_dir / f"projection_epoch{best['epoch']}.pth", model_dir / f"lora_epoch{best['epoch']}"
    checkpoint = read_checkpoint(best_file)
    model.projection.load_state_dict(checkpoint["projection"])
    if checkpoint["encoder"] is not None:
        model.encoder.load_state_dict(checkpoint["encoder"])
    load_lora(model.language_model, lora_dir, checkpoint["lora"])
    rows = evaluate(accelerator, model, splits["test"], args, "test", model_dir)
    if accelerator.is_main_process:
        finish_run(model_dir, rows, best, args.select_by, args.shuffle_labels)
    accelerator.end_training()


# ---------------------------------------------------------------- what a run keeps


def save_epoch(model_dir, accelerator, model, optimizer, schedule, history, facts: dict) -> None:
    """This epoch's checkpoint under the seed's names, and last of all the state to resume from."""
    model = accelerator.unwrap_model(model)
    epoch = history[-1]["epoch"]
    encoder = None if model.train_encoder == "never" else model.encoder.state_dict()
    weights = {"projection": model.projection.state_dict(), "encoder": encoder}
    facts |= {"lora": lora_facts(model.language_model)}
    save_checkpoint(facts | {"epoch": epoch} | weights, model_dir / f"projection_epoch{epoch}.pth")
    with written_whole(model_dir / f"lora_epoch{epoch}") as unfinished:
        model.language_model.save_pretrained(unfinished)
    save_checkpoint({
        "history": history, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "lora": [p.detach() for p in model.lora_parameters()], **weights,
    }, model_dir / "last.pth")  # fmt: skip


def load_trained(model: EEGLanguageModel, state: dict) -> None:
    """Put a resumed run's weights into a fresh model."""
    model.projection.load_state_dict(state["projection"])
    if state["encoder"] is not None:
        model.encoder.load_state_dict(state["encoder"])
    for parameter, value in zip(model.lora_parameters(), state["lora"], strict=True):
        parameter.data.copy_(value)


if __name__ == "__main__":
    run_script(
        lambda: main(args), [Path(args.model_dir) / ".lock"], "finished epochs are kept; go on with --resume"
    )  # fmt: skip

"""EEG → text: train the projection, then projection and LoRA, of a language model that reads EEG tokens.

    python finetune_eeg_llm.py --downstream_dataset BCICIV2a --datasets_dir data/BCICIV2a/processed_lmdb \
        --model_dir pth_downtasks/eeg_llm_bcic_new --foundation_dir pth/CSBrain.pth
    accelerate launch --multi_gpu --num_processes 2 finetune_eeg_llm.py …             # several GPUs
    accelerate launch --multi_gpu --num_processes 2 finetune_eeg_llm.py … --cuda -1   # several CPU processes
    python finetune_eeg_llm.py … --resume                           # go on after an interruption
    python finetune_eeg_llm.py … --shuffle_labels                   # the twin that must score at chance

Leaves in --model_dir: projection_epochN.pth, lora_epochN/, metrics.jsonl, learning_curve.png, run.json, results.json
(the test score of the best epoch, reloaded from disk) and decoded_test.jsonl.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from datasets.description import DATASETS, load_dataset
from datasets.text import TextCollator, shuffled_labels
from models.CSBrain import load_encoder
from models.eeg_llm import EEGLanguageModel, EEGProjection, EEGTokenReducer, add_lora, load_language_model, load_lora
from models.features import TokenCache
from utils.checkpoints import fingerprint, read_checkpoint, save_checkpoint
from utils.device import PRECISIONS, start_accelerator
from utils.errors import UserError, run_script
from utils.flags import check_at_least, check_numbers
from utils.montages import TOKEN_POOLINGS
from utils.paths import default, written_whole
from utils.records import learning_curve, open_run, report_test, write_json, write_jsonl
from utils.seeds import seed_everything
from utils.statistics import TEXT_READOUTS, score_readouts

MIN_LR = 1e-6  # where the cosine ends


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--downstream_dataset", choices=list(DATASETS), required=True, help="which dataset's words and montage")
    add("--datasets_dir", required=True, help="trial store (or CBraMod's LMDB)")
    add("--model_dir", required=True, help="folder for checkpoints, metrics and results")
    add("--use_pretrained_weights", action=argparse.BooleanOptionalAction, default=True,
        help="load --foundation_dir; --no-use_pretrained_weights runs on a random frozen encoder")  # fmt: skip
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="CSBrain's checkpoint")
    add("--allow_partial", action="store_true", help="load what fits of the checkpoint and list what does not")
    add("--llm", default="TinyLlama/TinyLlama-1.1B-Chat-v1.0", help="chat model: local folder or hub address")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--token_pooling", choices=TOKEN_POOLINGS, default="region",
        help="region: the seed's; hemisphere: left, midline and right apart; electrode: no pooling")  # fmt: skip
    add("--epochs", type=int, help="epochs in all, warm-up included (default: the dataset's)")
    add("--warmup_epochs", type=int, help="epochs that train the projection only (default: the dataset's)")
    add("--batch_size", type=int, default=4, help="trials a micro-batch and process")
    add("--gradient_accumulation_steps", type=int, default=8, help="micro-batches an optimiser step")
    add("--eval_batch_size", type=int, default=32, help="trials decoded at once")
    add("--warmup_lr", type=float, default=5e-4, help="peak learning rate of the warm-up phase")
    add("--lr", type=float, default=2e-4, help="peak learning rate of the joint phase")
    add("--weight_decay", type=float, default=0.01, help="AdamW's")
    add("--clip", type=float, default=1.0, help="largest gradient norm")
    add("--train_encoder", action="store_true", help="train CSBrain as well in the joint phase (no token cache)")
    add("--encoder_lr", type=float, default=1e-5, help="peak learning rate of the encoder with --train_encoder")
    add("--no_cache_features", action="store_true", help="encode every trial anew in every epoch")
    add("--cache_dir", help="folder of the token cache (default: token_cache beside --datasets_dir)")
    add("--max_new_tokens", type=int, default=64, help="longest decoded text, in tokens")
    add("--select_by", choices=TEXT_READOUTS, default="keyword",
        help="read-out whose validation accuracy picks the best epoch")  # fmt: skip
    add("--shuffle_labels", action="store_true", help="shuffle the labels of all splits: the twin, to score at chance")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")
    add("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    add("--seed", type=int, default=0, help="of everything random")
    add("--resume", action="store_true", help="go on with the run in --model_dir")
    args = parser.parse_args()
    description = load_dataset(args.downstream_dataset)[0]
    args.epochs = description.epochs if args.epochs is None else args.epochs
    args.warmup_epochs = (
        min(description.warmup_epochs, args.epochs) if args.warmup_epochs is None else args.warmup_epochs
    )
    check_at_least(parser, args, epochs=1, batch_size=1, gradient_accumulation_steps=1, eval_batch_size=1, seed=0)
    check_numbers(parser, args, "warmup_lr", "lr", "encoder_lr", "weight_decay", "clip")
    if not 0 <= args.warmup_epochs <= args.epochs:
        parser.error(f"--warmup_epochs {args.warmup_epochs} must lie between 0 and --epochs {args.epochs}")
    return args


# ---------------------------------------------------------------- one epoch, one evaluation


def train_epoch(accelerator, model, loader, optimizer, schedule, args, bar) -> float:
    """One pass over the training trials; the last, partial accumulation group counts in full. Returns the mean loss."""
    model.train()
    group, n_batches, total = args.gradient_accumulation_steps, len(loader), 0.0
    for step, batch in enumerate(loader):
        in_group = min(group, n_batches - step // group * group)
        with accelerator.accumulate(model):
            loss = model(batch["x"], batch["target_ids"], batch["target_mask"])
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


def evaluate(accelerator, model, dataset, description, args, name: str) -> list[dict]:
    """Decode a split with both read-outs; one row a trial, in the split's order, on every process."""
    model = accelerator.unwrap_model(model).eval()
    mine = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    loader = DataLoader(mine, args.eval_batch_size)
    rows = []
    for batch in tqdm(loader, desc=name, unit="batch", leave=False, disable=not accelerator.is_main_process):
        with accelerator.autocast():
            texts, scores = model.decode(batch["x"].to(accelerator.device), description.canonical, args.max_new_tokens)
        for i, text, score in zip(batch["index"].tolist(), texts, scores.cpu(), strict=True):
            rows.append(dataset.truth(i) | description.text_readouts(text, score.softmax(0).tolist()))
    return sorted(gather_object(rows), key=lambda row: row["index"])


def main() -> None:
    args = parse_args()
    model_dir = Path(args.model_dir)

    # ------------------------------------------------------------ set-up
    accelerator, precision = start_accelerator(args.cuda, args.precision, args.gradient_accumulation_steps, args.seed)
    say = accelerator.print
    description, Loader = load_dataset(args.downstream_dataset)
    splits = {mode: Loader(args.datasets_dir, mode) for mode in ("train", "val", "test")}
    for mode in ("train", "val"):
        if not len(splits[mode]):
            raise UserError(f"{args.datasets_dir} has no {mode} trials; training needs train and val")
    if args.shuffle_labels:
        for dataset in splits.values():
            dataset.labels = shuffled_labels(dataset.trials, args.seed)
    free = {"model_dir", "datasets_dir", "foundation_dir", "eval_batch_size"}
    record, goes_on = open_run(model_dir, args, free, splits["train"].store.fingerprint, "projection_epoch*.pth")
    state = read_checkpoint(model_dir / "last.pth") if goes_on else {}
    accelerator.wait_for_everyone()  # all have looked before the first one writes

    # ------------------------------------------------------------ EEG tokens: the frozen encoder runs once
    montage = description.montage
    encoder = load_encoder(
        montage, args.foundation_dir if args.use_pretrained_weights else None, args.allow_partial, args.seed
    )
    reducer = EEGTokenReducer(montage, args.token_pooling)
    encoder_fingerprint = fingerprint(encoder)
    if state and state["encoder_fingerprint"] != encoder_fingerprint:
        raise UserError(f"--resume: the run in {model_dir} had another encoder than {args.foundation_dir}")
    cached = not (args.no_cache_features or args.train_encoder)
    if cached:
        cache = TokenCache(args.cache_dir, encoder, montage, args.token_pooling)
        with accelerator.main_process_first():
            for dataset in splits.values():
                dataset.tokens = cache.tokens(dataset, accelerator.device)

    # ------------------------------------------------------------ language model, LoRA, projection
    dtype = PRECISIONS[precision]
    language_model, tokenizer = load_language_model(args.llm, accelerator.device, not args.no_quantize, dtype)
    seed_everything(args.seed)
    language_model = add_lora(language_model)
    projection = EEGProjection(language_model.get_input_embeddings().weight.shape[1])
    model = EEGLanguageModel(
        language_model, tokenizer, description.system_prompt, description.user_prompt, projection,
        None if cached else encoder, None if cached else reducer, args.train_encoder,
    ).to(accelerator.device)  # fmt: skip
    say(
        f"{description.name}: {' / '.join(str(len(d)) for d in splits.values())} train / val / test trials, "
        f"{len(reducer.groups)} groups × {splits['train'].signal(0).shape[1]} patches; projection "
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
    for epoch in range(len(history) + 1, args.epochs + 1):
        joint = epoch > args.warmup_epochs
        if phase != ("joint" if joint else "warmup"):  # a new phase: what is trained, its optimiser, its schedule
            phase = "joint" if joint else "warmup"
            if optimizer is not None:
                model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
                accelerator.free_memory()
            elif history:
                load_trained(model, state)
            groups = [{"params": model.set_phase(joint), "lr": args.lr if joint else args.warmup_lr}]
            if joint and args.train_encoder:
                groups.append({"params": [p for p in encoder.parameters() if p.requires_grad], "lr": args.encoder_lr})
            optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay)
            loader = DataLoader(splits["train"], args.batch_size, shuffle=True, collate_fn=collator)
            model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
            epochs = args.epochs - args.warmup_epochs if joint else args.warmup_epochs
            steps = epochs * math.ceil(len(loader) / args.gradient_accumulation_steps)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, max(steps, 1), MIN_LR)
            if history and history[-1]["phase"] == phase:  # resumed within this phase
                optimizer.load_state_dict(state["optimizer"])
                schedule.load_state_dict(state["schedule"])
                if accelerator.scaler is not None and state["scaler"]:
                    accelerator.scaler.load_state_dict(state["scaler"])

        # each epoch seeds everything anew, so a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        loader.set_epoch(epoch)
        collator.epoch = epoch
        started = time.perf_counter()
        bar = tqdm(total=len(splits["train"]), desc=f"epoch {epoch}/{args.epochs} ({phase})", unit="trial",
                   disable=not accelerator.is_main_process)  # fmt: skip
        with bar:
            train_loss = train_epoch(accelerator, model, loader, optimizer, schedule, args, bar)
        if not math.isfinite(train_loss):
            raise UserError(f"the loss of epoch {epoch} is {train_loss}; lower --lr, or use --precision bf16 or fp32")
        seconds = time.perf_counter() - started
        rows = evaluate(accelerator, model, splits["val"], description, args, "validation")
        val = {readout: result.as_dict() for readout, result in score_readouts(rows, description.chance).items()}
        history.append({
            "epoch": epoch, "phase": phase, "train_loss": train_loss, "lr": schedule.get_last_lr()[0],
            "train_seconds": seconds, "seconds": time.perf_counter() - started, "val": val,
        })  # fmt: skip
        say(f"epoch {epoch} ({phase}): loss {train_loss:.4f}, validation "
            + ", ".join(f"{readout} {100 * result['accuracy']:.1f} %" for readout, result in val.items()))  # fmt: skip
        if accelerator.is_main_process:
            save_epoch(model_dir, accelerator, model, optimizer, schedule, history, encoder_fingerprint, args)
            learning_curve(history, description.chance, model_dir / "learning_curve.png")
        accelerator.wait_for_everyone()

    # ------------------------------------------------------------ the best epoch, reloaded from disk, on the test people
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    best = max(history, key=lambda row: (row["val"][args.select_by]["accuracy"], -row["epoch"]))
    checkpoint = read_checkpoint(model_dir / f"projection_epoch{best['epoch']}.pth")
    model.projection.load_state_dict(checkpoint["projection"])
    if checkpoint["encoder"] is not None:
        model.encoder.load_state_dict(checkpoint["encoder"])
    load_lora(model.language_model, model_dir / f"lora_epoch{best['epoch']}")
    rows = evaluate(accelerator, model, splits["test"], description, args, "test")
    if accelerator.is_main_process:
        report_test(model_dir, rows, best, args.select_by, description.chance, args.shuffle_labels)
    accelerator.end_training()


# ---------------------------------------------------------------- what a run keeps


def save_epoch(model_dir, accelerator, model, optimizer, schedule, history, encoder_fingerprint, args) -> None:
    """This epoch's checkpoint under the seed's names, the metrics so far, and last of all the state to resume from."""
    model = accelerator.unwrap_model(model)
    epoch = history[-1]["epoch"]
    encoder = model.encoder.state_dict() if args.train_encoder else None
    save_checkpoint({
        "dataset": args.downstream_dataset, "token_pooling": args.token_pooling, "epoch": epoch,
        "encoder_fingerprint": encoder_fingerprint, "llm": str(Path(args.llm).resolve()) if Path(args.llm).is_dir() else args.llm,
        "projection": model.projection.state_dict(),
        "encoder": encoder,
    }, model_dir / f"projection_epoch{epoch}.pth")  # fmt: skip
    with written_whole(model_dir / f"lora_epoch{epoch}") as unfinished:
        model.language_model.save_pretrained(unfinished)
    write_jsonl(history, model_dir / "metrics.jsonl")
    save_checkpoint({
        "history": history, "encoder_fingerprint": encoder_fingerprint, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "projection": model.projection.state_dict(), "encoder": encoder,
        "lora": [p.detach() for p in model.lora_parameters()],
    }, model_dir / "last.pth")  # fmt: skip


def load_trained(model: EEGLanguageModel, state: dict) -> None:
    """Put a resumed run's weights into a fresh model."""
    model.projection.load_state_dict(state["projection"])
    if state["encoder"] is not None:
        model.encoder.load_state_dict(state["encoder"])
    for parameter, value in zip(model.lora_parameters(), state["lora"], strict=True):
        parameter.data.copy_(value)


if __name__ == "__main__":
    run_script(main)

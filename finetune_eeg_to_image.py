"""EEG → CLIP space: train the mapper from EEG tokens to an image model's conditioning, with a classifier head.

    python finetune_eeg_to_image.py --datasets_dir data/VisualImagery/processed_lmdb \
        --stimuli_dir data/VisualImagery/stimuli --foundation_dir pth/CSBrain.pth --output_dir pth_downtasks/eeg_direct \
        --epochs 20 --warmup_epochs 5 --batch_size 16 --lr 5e-4 --lambda_cls 5.0 --lambda_contrastive 2.0 \
        --lambda_cos 1.0 --lambda_mse 0.1 --temperature 0.5 --cuda 0
    python finetune_eeg_to_image.py … --mapper mlp                  # or linear: the published baselines
    python finetune_eeg_to_image.py … --resume                      # go on after an interruption
    python finetune_eeg_to_image.py … --shuffle_labels              # the twin that must score at chance

Leaves in --output_dir: mapper_epochN.pth, metrics.jsonl, learning_curve.png, run.json, results.json (the test score of
the best epoch by the head's validation accuracy, reloaded from disk) and decoded_test.jsonl.
"""

import argparse
import hashlib
import math
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from datasets.text import shuffled_labels
from datasets.visual_imagery_llm_dataset import DESCRIPTION, VisualImageryLLMDataset
from models.CSBrain import load_encoder
from models.eeg_clip_mapper import (
    MAPPERS,
    TOKEN_POSITIONS,
    CLIPImageTargetBuilder,
    CLIPTextTargetBuilder,
    EEGCLIPMapper,
    mapper_loss,
    mapper_readouts,
    mean_pairwise_cosine,
)
from models.features import TokenCache
from models.image_generator import image_model_address
from utils.checkpoints import fingerprint, read_checkpoint, save_checkpoint
from utils.device import PRECISIONS, start_accelerator
from utils.errors import UserError, run_script
from utils.flags import check_at_least, check_numbers
from utils.montages import TOKEN_POOLINGS
from utils.paths import default
from utils.records import learning_curve, open_run, report_test, write_json, write_jsonl
from utils.seeds import seed_everything
from utils.statistics import score_readouts

LAMBDAS = ("cls", "contrastive", "cos", "mse")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--datasets_dir", default=default("data/VisualImagery/processed_lmdb"), help="trial store")
    add("--stimuli_dir", default=default("data/VisualImagery/stimuli"), help="folder of the ten photos")
    add("--output_dir", "--model_dir", default=default("pth_downtasks/eeg_direct"),
        help="folder for checkpoints, metrics and results")  # fmt: skip
    add("--use_pretrained_weights", action=argparse.BooleanOptionalAction, default=True,
        help="load --foundation_dir; --no-use_pretrained_weights runs on a random frozen encoder")  # fmt: skip
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="CSBrain's checkpoint")
    add("--allow_partial", action="store_true", help="load what fits of the checkpoint and list what does not")
    add("--warm_start", help="projection_epochN.pth of finetune_eeg_llm.py --downstream_dataset VI: take over its token "
        "pooling, and its encoder where that was trained")  # fmt: skip
    add("--token_pooling", choices=TOKEN_POOLINGS,
        help="region: the seed's and the default; hemisphere: left, midline and right apart; electrode: no pooling")  # fmt: skip
    add("--mapper", choices=MAPPERS, default="qformer",
        help="qformer: the seed's; mlp and linear: the published baselines (no Q-Former, linear probe)")  # fmt: skip
    add("--token_positions", choices=TOKEN_POSITIONS, default="none",
        help="none: as published, blind to the order of the tokens; learned: an embedding a token")  # fmt: skip
    add("--clip_model", default="openai/clip-vit-large-patch14", help="CLIP: local folder or hub address")
    add("--image_model", default="runwayml/stable-diffusion-v1-5",
        help="image model whose text states are the mapper's target: local folder or hub address")  # fmt: skip
    add("--image_targets", choices=("image", "text"), default="image",
        help="a class's prototype: image: CLIP embedding of its photo; text: pooled vector of its prompt")  # fmt: skip
    add("--epochs", type=int, default=20, help="epochs in all, warm-up included")
    add(
        "--warmup_epochs",
        type=int,
        help="epochs at --lr without the MSE term (default: 5, or all where there are fewer)",
    )
    add("--batch_size", type=int, default=16, help="trials an optimiser step and process")
    add("--eval_batch_size", type=int, default=128, help="trials mapped at once in evaluation")
    add("--lr", type=float, default=5e-4, help="learning rate of the warm-up")
    add("--joint_lr", type=float, default=1e-4, help="learning rate after the warm-up")
    add("--weight_decay", type=float, default=0.01, help="AdamW's")
    add("--clip", type=float, default=1.0, help="largest gradient norm")
    add("--dropout", type=float, default=0.1, help="inside the mapper")
    add("--lambda_cls", type=float, default=5.0, help="weight of the head's cross-entropy")
    add("--lambda_contrastive", type=float, default=2.0, help="weight of InfoNCE against the prototypes")
    add("--lambda_cos", type=float, default=1.0, help="weight of 1 − cosine to the class's prototype")
    add("--lambda_mse", type=float, default=0.1, help="weight of the text states' squared error, off in warm-up")
    add("--temperature", type=float, default=0.5, help="τ of InfoNCE")
    add("--cache_dir", help="folder of the token and target caches (default: token_cache beside --datasets_dir)")
    add("--shuffle_labels", action="store_true", help="shuffle the labels of all splits: the twin, to score at chance")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: fp16 on a GPU, fp32 on the CPU")
    add("--cuda", type=int, default=0, help="number of the GPU; -1 for the CPU")
    add("--seed", type=int, default=0, help="of everything random")
    add("--resume", action="store_true", help="go on with the run in --output_dir")
    args = parser.parse_args()
    args.warmup_epochs = min(5, args.epochs) if args.warmup_epochs is None else args.warmup_epochs
    check_at_least(parser, args, epochs=1, batch_size=1, eval_batch_size=1, seed=0, warmup_epochs=0)
    check_numbers(parser, args, "lr", "joint_lr", "weight_decay", "clip", *(f"lambda_{name}" for name in LAMBDAS))
    if args.warmup_epochs > args.epochs:
        parser.error(f"--warmup_epochs {args.warmup_epochs} must lie between 0 and --epochs {args.epochs}")
    if not (math.isfinite(args.temperature) and args.temperature > 0 and 0 <= args.dropout < 1):
        parser.error("--temperature must be positive, --dropout between 0 and 1")
    return args


# ---------------------------------------------------------------- one epoch, one evaluation


def train_epoch(accelerator, mapper, loader, optimizer, targets, args, with_mse: bool, bar) -> tuple[float, dict]:
    """One pass over the training trials. Returns the mean loss and its unweighted parts."""
    mapper.train()
    weights = {name: getattr(args, f"lambda_{name}") for name in LAMBDAS}
    total, totals = 0.0, dict.fromkeys(LAMBDAS, 0.0)
    for batch in loader:
        loss, parts = mapper_loss(mapper(batch["x"]), batch["label"], *targets, weights, args.temperature, with_mse)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(mapper.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
        totals = {name: totals[name] + parts[name].detach() if name in parts else 0.0 for name in LAMBDAS}
        bar.update(len(batch["label"]) * accelerator.num_processes)
    mean = accelerator.reduce(torch.as_tensor(total / len(loader)), reduction="mean")
    return float(mean), {name: float(value) / len(loader) for name, value in totals.items()}


@torch.no_grad()
def evaluate(accelerator, mapper, dataset, prototypes, args) -> list[dict]:
    """Both read-outs of a split; one row a trial, in the split's order, on every process."""
    mapper = accelerator.unwrap_model(mapper).eval()
    mine = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    rows = []
    for batch in DataLoader(mine, args.eval_batch_size):
        with accelerator.autocast():
            outputs = mapper(batch["x"].to(accelerator.device))
        for index, readouts in zip(batch["index"].tolist(), mapper_readouts(outputs, prototypes), strict=True):
            text = DESCRIPTION.canonical[readouts["head_label"]]
            rows.append(dataset.truth(index) | readouts | {"text": text})
    return sorted(gather_object(rows), key=lambda row: row["index"])


def main() -> None:
    args = parse_args()
    output_dir = Path(args.output_dir)

    # ------------------------------------------------------------ set-up
    # the baselines' text positions learn from the MSE term alone, which the warm-up leaves out
    accelerator, precision = start_accelerator(args.cuda, args.precision, 1, args.seed, idle_parameters=True)
    say = accelerator.print
    splits = {mode: VisualImageryLLMDataset(args.datasets_dir, mode) for mode in ("train", "val", "test")}
    for mode in ("train", "val"):
        if not len(splits[mode]):
            raise UserError(f"{args.datasets_dir} has no {mode} trials; training needs train and val")
    if args.shuffle_labels:
        for dataset in splits.values():
            dataset.labels = shuffled_labels(dataset.trials, args.seed)
    warm = read_checkpoint(args.warm_start) if args.warm_start else {}
    if warm and warm.get("dataset") != DESCRIPTION.name:
        raise UserError(f"--warm_start {args.warm_start}: no text checkpoint of {DESCRIPTION.name}")
    args.token_pooling = args.token_pooling or warm.get("token_pooling") or "region"
    free = {"output_dir", "datasets_dir", "stimuli_dir", "foundation_dir", "eval_batch_size"}
    record, goes_on = open_run(output_dir, args, free, splits["train"].store.fingerprint, "mapper_epoch*.pth")
    state = read_checkpoint(output_dir / "last.pth") if goes_on else {}
    accelerator.wait_for_everyone()  # all have looked before the first one writes

    # ------------------------------------------------------------ targets: photos and prompts in CLIP space
    cache_dir = Path(args.cache_dir or splits["train"].store.path.resolve().parent / "token_cache")
    image_model = image_model_address(args.image_model)
    with accelerator.main_process_first():
        photos = [Path(args.stimuli_dir) / DESCRIPTION.stimuli[label] for label in range(len(DESCRIPTION.classes))]
        image_vectors = CLIPImageTargetBuilder(args.clip_model, cache_dir).build(photos)  # (10, 768)
        prompts = [DESCRIPTION.image_prompts[label] for label in range(len(DESCRIPTION.classes))]
        text_states, text_vectors = CLIPTextTargetBuilder(image_model, cache_dir).build(
            prompts
        )  # (10, 77, 768), (10, 768)
    say(f"mean pairwise cosine of the targets: images {mean_pairwise_cosine(image_vectors):.2f}, "
        f"texts {mean_pairwise_cosine(text_vectors):.2f} (published: 0.54 and 0.90)")  # fmt: skip
    prototypes = image_vectors if args.image_targets == "image" else text_vectors
    if prototypes.shape[-1] != text_states.shape[-1]:
        raise UserError(
            f"--clip_model gives vectors of width {prototypes.shape[-1]}, --image_model reads states of width "
            f"{text_states.shape[-1]}; the mapper needs both alike, as with CLIP ViT-L/14 and Stable Diffusion 1.5 or aMUSEd"
        )
    targets_fingerprint = hashlib.sha256(prototypes.numpy().tobytes() + text_states.numpy().tobytes()).hexdigest()
    if state and state["targets_fingerprint"] != targets_fingerprint:
        raise UserError(f"--resume: the run in {output_dir} had other photos, CLIP or image model: its targets differ")
    targets = prototypes.to(accelerator.device), text_states.to(accelerator.device)

    # ------------------------------------------------------------ EEG tokens: the frozen encoder runs once
    encoder = load_encoder(
        DESCRIPTION.montage, args.foundation_dir if args.use_pretrained_weights else None, args.allow_partial, args.seed
    )
    encoder_fingerprint = fingerprint(encoder)
    if state and state["encoder_fingerprint"] != encoder_fingerprint:
        raise UserError(f"--resume: the run in {output_dir} had another encoder than {args.foundation_dir}")
    if warm:
        trained = warm.get("encoder")
        if trained is not None:
            encoder.load_state_dict(trained)
        say(f"warm start: {args.token_pooling} pooling"
            + (" and the trained encoder" if trained is not None else "; the reducer has no weights, the encoder was frozen"))  # fmt: skip
    cache = TokenCache(args.cache_dir, encoder, DESCRIPTION.montage, args.token_pooling)
    with accelerator.main_process_first():
        for dataset in splits.values():
            dataset.tokens = cache.tokens(dataset, accelerator.device)

    # ------------------------------------------------------------ mapper
    seed_everything(args.seed)
    settings = {
        "n_classes": len(DESCRIPTION.classes), "n_tokens": splits["train"].tokens.shape[1],
        "clip_width": text_states.shape[-1], "mapper": args.mapper, "token_positions": args.token_positions,
        "dropout": args.dropout,
    }  # fmt: skip
    mapper = EEGCLIPMapper(**settings)
    say(
        f"VI: {' / '.join(str(len(d)) for d in splits.values())} train / val / test trials, {settings['n_tokens']} tokens; "
        f"{args.mapper} mapper {sum(p.numel() for p in mapper.parameters()):,} parameters; {precision}, "
        f"{accelerator.num_processes} process(es) on {accelerator.device}"
    )
    if state:
        mapper.load_state_dict(state["mapper"])
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    loader = DataLoader(splits["train"], args.batch_size, shuffle=True)
    mapper, optimizer, loader = accelerator.prepare(mapper, optimizer, loader)
    if state:
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])

    # ------------------------------------------------------------ training
    if accelerator.is_main_process and not state:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(record | {"num_processes": accelerator.num_processes}, output_dir / "run.json")
    kept = {
        "dataset": DESCRIPTION.name, "classes": list(DESCRIPTION.classes), "token_pooling": args.token_pooling,
        "encoder_fingerprint": encoder_fingerprint, "encoder": warm.get("encoder"), "settings": settings,
        "prototypes": prototypes, "image_targets": args.image_targets, "image_model": image_model,
    }  # fmt: skip
    history = state.get("history", [])
    for epoch in range(len(history) + 1, args.epochs + 1):
        joint = epoch > args.warmup_epochs
        for group in optimizer.param_groups:
            group["lr"] = args.joint_lr if joint else args.lr
        # each epoch seeds everything anew, so a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        loader.set_epoch(epoch)
        started = time.perf_counter()
        bar = tqdm(total=len(splits["train"]), desc=f"epoch {epoch}/{args.epochs} ({'joint' if joint else 'warmup'})",
                   unit="trial", disable=not accelerator.is_main_process)  # fmt: skip
        with bar:
            train_loss, parts = train_epoch(accelerator, mapper, loader, optimizer, targets, args, joint, bar)
        if not math.isfinite(train_loss):
            raise UserError(
                f"the loss of epoch {epoch} is {train_loss}; lower --lr, or look at the weights of the terms"
            )
        rows = evaluate(accelerator, mapper, splits["val"], targets[0], args)
        val = {readout: result.as_dict() for readout, result in score_readouts(rows, DESCRIPTION.chance).items()}
        history.append({
            "epoch": epoch, "phase": "joint" if joint else "warmup", "train_loss": train_loss, "loss_parts": parts,
            "lr": optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - started, "val": val,
        })  # fmt: skip
        say(f"epoch {epoch} ({history[-1]['phase']}): loss {train_loss:.4f}, validation "
            + ", ".join(f"{readout} {100 * result['accuracy']:.1f} %" for readout, result in val.items()))  # fmt: skip
        if accelerator.is_main_process:
            weights = accelerator.unwrap_model(mapper).state_dict()
            save_checkpoint(kept | {"epoch": epoch, "mapper": weights}, output_dir / f"mapper_epoch{epoch}.pth")
            write_jsonl(history, output_dir / "metrics.jsonl")
            learning_curve(history, DESCRIPTION.chance, output_dir / "learning_curve.png")
            save_checkpoint({
                "history": history, "encoder_fingerprint": encoder_fingerprint, "mapper": weights,
                "targets_fingerprint": targets_fingerprint, "optimizer": optimizer.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            }, output_dir / "last.pth")  # fmt: skip
        accelerator.wait_for_everyone()

    # ------------------------------------------------------------ the best epoch, reloaded from disk, on the test people
    mapper = accelerator.unwrap_model(mapper, keep_fp32_wrapper=False)
    best = max(history, key=lambda row: (row["val"]["head"]["accuracy"], -row["epoch"]))
    mapper.load_state_dict(read_checkpoint(output_dir / f"mapper_epoch{best['epoch']}.pth")["mapper"])
    rows = evaluate(accelerator, mapper, splits["test"], targets[0], args)
    if accelerator.is_main_process:
        report_test(output_dir, rows, best, "head", DESCRIPTION.chance, args.shuffle_labels)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)

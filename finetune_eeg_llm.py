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
README.md is the run's model card; model.safetensors with config.json is the best epoch a second time, for share.py.
"""

import argparse
import math
from pathlib import Path

from datasets.alignment import ADAPTATIONS, ALIGNMENTS, METHODS
from datasets.description import load_description, one_of, with_words
from datasets.splits import PROTOCOLS, check_protocol
from models import ADAPTERS, AUGMENTATIONS, FEATURE_ENCODERS, POOLINGS, choose
from stages.rows import TEXT_READOUTS
from utils import flags
from utils.errors import loading
from utils.script import run_script, start_script

MIN_LR = 1e-6  # where the cosine ends


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    epochs = ", ".join(f"{name} {load_description(name).epochs}" for name in with_words())
    warmup = ", ".join(f"{name} {load_description(name).warmup_epochs}" for name in with_words())
    # fmt: off
    add = parser.add_argument
    flags.add_dataset_flags(parser, one_of(with_words()), "which dataset's words and montage")
    flags.add_store_flags(parser, None, PROTOCOLS, check_protocol)
    flags.add_part_flags(parser, ALIGNMENTS, METHODS)
    add("--model_dir", required=True, help="folder for checkpoints, metrics and results")
    flags.add_encoder_flags(parser, FEATURE_ENCODERS)
    add("--llm", default="TinyLlama/TinyLlama-1.1B-Chat-v1.0", help="chat model: local folder or hub address; tiny: a "
        "small one that is trained on the dataset's own sentences in about a minute")
    add("--no_quantize", action="store_true", help="full weights instead of 4-bit NF4")
    add("--lora_r", type=flags.at_least(1), default=8, help="LoRA's rank")
    add("--lora_alpha", type=flags.number, default=16, help="LoRA's scale")
    add("--lora_targets", nargs="+",
        help="linear layers that get LoRA (default: q_proj v_proj, or of a model without these its attention's)")
    add("--epochs", type=flags.at_least(1), help=f"epochs in all, warm-up included (default: {epochs})")
    add("--warmup_epochs", type=int, help=f"epochs without LoRA (default: {warmup})")
    add("--batch_size", type=flags.at_least(1), default=4, help="trials a micro-batch and process")
    add("--gradient_accumulation_steps", type=flags.at_least(1), default=8, help="micro-batches an optimiser step")
    add("--eval_batch_size", type=flags.at_least(1), default=32, help="trials decoded at once")
    add("--warmup_lr", type=flags.number, default=5e-4, help="peak learning rate of the warm-up phase")
    add("--lr", type=flags.number, default=2e-4, help="peak learning rate of the joint phase")
    add("--dropout", type=flags.share, default=0.1, help="inside the projection")
    add("--adapter", choices=list(ADAPTERS),
        help="mixer: positions and a block of attention between the EEG tokens and the projection (default: none)")
    add("--lambda_cls", type=flags.number, default=1.0,
        help="weight of the class head beside the language model; 0: no head")
    add("--max_new_tokens", type=flags.at_least(1), default=64, help="longest decoded text, in tokens")
    add("--select_by", choices=list(TEXT_READOUTS), default="keyword",
        help="read-out whose validation accuracy picks the best epoch")
    flags.add_training_flags(parser, POOLINGS, AUGMENTATIONS)
    add("--mirror_average", action="store_true",
        help="decode each trial and its mirror image, sides of classes exchanged, and take the mean of probabilities")
    flags.add_adapt_flag(add, ADAPTATIONS)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, None)
    args.token_pooling = args.token_pooling or "region"
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch

from datasets.store import description_of_store, read_words
from datasets.trials import TextCollator, load_splits, part_of
from models.eeg_llm import (
    LORA_TARGETS,
    ClassHead,
    EEGLanguageModel,
    EEGProjection,
    add_lora,
    load_language_model,
    load_lora,
    lora_facts,
    lora_targets,
)
from models.tiny_llm import TINY, language_model_for
from models.token_encoders import training_of
from stages.adaptation import check_learns, check_prior
from stages.decoding import read_trials
from stages.runs import LAST, Run
from stages.scores import score_rows
from stages.tokens import augmentations, check_pretraining, checkpoint_facts, encoder_for, mirror_of, with_features
from utils.checkpoints import fingerprint, read_checkpoint
from utils.device import PRECISIONS, end_processes, resume_optimizer, scaler_state, start_accelerator
from utils.paths import cache_folder
from utils.processes import Processes, dealt, weight_by
from utils.progress import progress
from utils.seeds import seed_everything

# ---------------------------------------------------------------- one epoch


def train_epoch(accelerator, model, loader, optimizer, schedule, args, bar) -> float:
    """One pass over the training trials; the last, partial accumulation group counts in full. Returns the mean loss."""
    model.train()
    with accelerator.autocast():
        accelerator.unwrap_model(model).read_prefix()
    group, n_batches, total = args.gradient_accumulation_steps, len(loader), 0.0
    for step, batch in enumerate(loader):
        in_group = min(group, n_batches - step // group * group)
        with accelerator.accumulate(model):
            targets = batch["target_ids"], batch["target_mask"], args.label_smoothing, batch["label"]
            weights = weight_by(accelerator, batch["target_mask"], batch["weight"]), batch["weight"] * args.lambda_cls
            loss = model(batch["x"], *targets, weights)
            accelerator.backward(loss * group / in_group)  # accelerate divides by `group`, which the last may not fill
            if accelerator.sync_gradients:
                *text, head = (group["params"] for group in optimizer.param_groups)
                accelerator.clip_grad_norm_([p for group in text for p in group], args.clip)
                torch.nn.utils.clip_grad_norm_(head, args.clip)  # apart: of a frozen encoder it changes no text
            optimizer.step()
            if accelerator.sync_gradients:
                schedule.step()
            optimizer.zero_grad()
        total += loss.detach()
        bar.update(len(batch["label"]) * accelerator.num_processes)
    return float(accelerator.reduce(torch.as_tensor(total / n_batches), reduction="mean"))


def main(args: argparse.Namespace) -> None:
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words)
    args.downstream_dataset, args.protocol = description.name, args.protocol or description.protocol
    args.epochs = args.epochs or description.epochs
    if args.warmup_epochs is None:
        args.warmup_epochs = min(description.warmup_epochs, args.epochs)
    flags.check_phases(args)

    # ------------------------------------------------------------ set-up
    accelerator, precision = start_accelerator(args.cuda, args.precision, args.gradient_accumulation_steps, args.seed)
    of_tiny = list(args.lora_targets or LORA_TARGETS)  # which is a Llama, and may not be made yet
    args.lora_targets = of_tiny if args.llm == TINY else lora_targets(args.llm, args.lora_targets)
    splits = load_splits(args.datasets_dir, description, args.protocol, part_of(vars(args)))
    if args.shuffle_labels:
        splits = {mode: dataset.shuffled(args.seed) for mode, dataset in splits.items()}
    foundation = args.foundation_dir if args.use_pretrained_weights else None
    encoder = encoder_for(splits["train"], args.encoder, foundation, args.allow_partial, args.seed)
    check_pretraining(encoder, splits["test"])
    check_prior(args.adapt, splits["test"])
    encoder_fingerprint, store = fingerprint(encoder), splits["train"].store
    device, turn = accelerator.device, (accelerator.process_index, accelerator.num_processes)
    decoding = Processes(device, *turn), precision, args.eval_batch_size, args.max_new_tokens
    run = Run(Path(args.model_dir), ["projection_epoch{}.pth", "lora_epoch{}"], args.select_by, args.keep, turn)
    train_encoder = training_of(encoder, args.train_encoder, args.encoder_lora, args.layer_decay, args.seed)
    cached = train_encoder == "never" and not args.no_cache_features
    check_learns(args.adapt, None if cached else encoder, bool(args.lambda_cls))
    depends_on = {"store": store.fingerprint, "list of trials": store.listed, "encoder": encoder_fingerprint}
    run.open(vars(args), {"model_dir"}, depends_on)
    accelerator.wait_for_everyone()  # all have looked before the first one writes

    # ------------------------------------------------------------ language model, LoRA, projection
    dtype = PRECISIONS[precision]
    with accelerator.main_process_first():
        llm = language_model_for(args.llm, description.conversations, cache_folder(args.cache_dir, store.path))
    language_model, tokenizer = load_language_model(llm, device, not args.no_quantize, dtype)
    seed_everything(args.seed)
    language_model = add_lora(language_model, args.lora_r, args.lora_alpha, args.lora_targets)
    projection = EEGProjection(language_model.get_input_embeddings().weight.shape[1], encoder.width, args.dropout)

    # ------------------------------------------------------------ EEG tokens: a frozen encoder runs once
    augment = augmentations(args.augment, "tokens" if cached else "signal", splits["train"])
    splits, reducer = with_features(splits, encoder, cached, args.token_pooling, args.cache_dir, device, turn)
    model = EEGLanguageModel(
        language_model, tokenizer, description.system_prompt, description.user_prompt, projection,
        None if cached else encoder, None if cached else reducer, train_encoder,
    )  # fmt: skip
    add_parts(model, splits["train"], encoder, reducer, args)
    model.to(device)
    accelerator.print(
        f"{description.name}, {args.protocol}: {' / '.join(str(len(d)) for d in splits.values())} train / val / test "
        f"trials, tokens: {len(reducer.groups)} groups × {encoder.width} features; projection "
        f"{sum(p.numel() for p in projection.parameters()):,} and LoRA "
        f"{sum(p.numel() for p in model.lora_parameters()):,} parameters; "
        f"{'full' if args.no_quantize else '4-bit NF4'} language model, {precision}, {accelerator.num_processes} "
        f"process(es) on {device}"
    )

    # ------------------------------------------------------------ training
    run.begin(splits, args.protocol, **checkpoint_facts(encoder), **description.own_record())
    collator = TextCollator(description, tokenizer, args.seed, augment)
    facts = {
        "dataset": description.name, "classes": list(description.classes), "encoder_name": args.encoder,
        "token_pooling": args.token_pooling, "encoder_fingerprint": encoder_fingerprint, **splits["train"].facts,
        "protocol": args.protocol, "seen": [*splits["train"].seen, *splits["val"].seen], "adapter_name": args.adapter,
        "mirror_average": args.mirror_average, "adapt": args.adapt,
        "words": read_words(Path(args.words)) if args.words else None,
        "llm": str(Path(llm).resolve()) if Path(llm).is_dir() else llm,
    }  # fmt: skip
    phase = None
    for epoch in run.epochs(args.epochs):
        joint = epoch > args.warmup_epochs
        if phase != ("joint" if joint else "warmup"):  # a new phase: what is trained, its optimiser, its schedule
            if phase:
                model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
                accelerator.free_memory()
            phase = "joint" if joint else "warmup"
            phase_of = accelerator, model, splits["train"], collator, run, joint, args
            model, optimizer, loader, schedule = start_phase(*phase_of)
            del phase_of  # nothing but the accelerator may hold what it wrapped: see `end_processes`

        # each epoch seeds everything anew, so a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        loader.set_epoch(epoch)
        collator.epoch = epoch
        name, n = f"epoch {epoch}/{args.epochs} ({phase})", len(splits["train"])
        bar = progress(total=n, desc=name, unit="trial", disable=not accelerator.is_main_process)
        with bar:
            loss = train_epoch(accelerator, model, loader, optimizer, schedule, args, bar)
        run.trained(loss, "lower --lr, or use --precision bf16 or fp32")
        plain = accelerator.unwrap_model(model).eval()
        rows = read_trials(plain, splits["val"], range(len(splits["val"])), *decoding, name="validation")
        weights = {"projection": plain.projection.state_dict(), "encoder": plain.encoder_state()}
        parts = {"head": plain.head, "adapter": plain.adapter}
        weights |= {name: part.state_dict() for name, part in parts.items() if part}
        state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()} | weights
        state["encoder"] = plain.encoder_state(merge=False)
        state |= {"scaler": scaler_state(accelerator), "lora": [p.detach() for p in plain.lora_parameters()]}
        written = [facts | {"lora": lora_facts(plain.language_model)} | weights, plain.language_model.save_pretrained]
        said = run.save_epoch(loss, score_rows(rows), written, state, phase, lr=schedule.get_last_lr()[0])
        accelerator.wait_for_everyone()
        accelerator.print(said)

    # ------------------------------------------------------------ test: the best epoch, reloaded from disk
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    checkpoint = read_checkpoint(run.best_file())
    load_trained(model, checkpoint)
    load_lora(model.language_model, run.best_file(1), checkpoint["lora"])
    of_test = splits["test"], range(len(splits["test"])), *decoding, args.adapt, "test", run.folder
    run.finish(read_trials(model.eval(), *of_test), args.shuffle_labels)
    end_processes(accelerator)


# ---------------------------------------------------------------- further parts, a phase


def add_parts(model: EEGLanguageModel, dataset, encoder, reducer, args) -> None:
    """Give a model what is asked for beside projection and language model: head, adapter, mirror image."""
    if args.mirror_average:
        model.mirror = mirror_of(dataset, "signal" if model.encoder else "tokens")
    if not (args.lambda_cls or args.adapter):
        return
    x = dataset[0]["x"][None]
    with torch.no_grad():
        tokens = x if model.encoder is None else reducer(encoder(x.to(next(encoder.parameters()).device)))
    n_tokens, width = tokens.shape[1:]
    if args.lambda_cls:
        model.head = ClassHead(n_tokens, width, len(dataset.description.classes), encoder.pretrained)
    if args.adapter:
        model.adapter = choose(ADAPTERS, args.adapter)(n_tokens, width)


def start_phase(accelerator, model, dataset, collator, run, joint: bool, args) -> tuple:
    """Model, optimiser, loader and schedule of warm-up or joint training; of a run that goes on, as they were."""
    state, history = run.state, run.state.get("history", [])
    if history:
        with loading(*LAST):
            load_trained(model, state)
            for parameter, value in zip(model.lora_parameters(), state["lora"], strict=True):
                parameter.data.copy_(value)
    trained, of_encoder, of_head = model.set_phase(joint)
    lr = args.lr if joint else args.warmup_lr
    groups = [{"params": trained, "lr": lr}, *model.encoder_groups(of_encoder, args.encoder_lr, args.layer_decay)]
    groups.append({"params": of_head, "lr": lr})
    loader = dealt(accelerator, dataset, args.batch_size, args.seed, collator)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, weight_decay=args.weight_decay))
    epochs = args.epochs - args.warmup_epochs if joint else args.warmup_epochs
    steps = epochs * math.ceil(len(loader) / args.gradient_accumulation_steps)
    lowest = min(MIN_LR, *(group["lr"] for group in groups))  # no rate rises
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, max(steps, 1), lowest)
    if history and history[-1]["phase"] == ("joint" if joint else "warmup"):  # resumed within this phase
        with loading(*LAST):
            resume_optimizer(accelerator, optimizer, state)
            schedule.load_state_dict(state["schedule"])
    run.state = {}  # taken over once
    return model, optimizer, loader, schedule


def load_trained(model: EEGLanguageModel, state: dict) -> None:
    """Put an epoch's weights into a model, but for its language model's."""
    model.projection.load_state_dict(state["projection"])
    for name in ("head", "adapter"):
        if part := getattr(model, name):
            part.load_state_dict(state[name])
    model.load_encoder(state["encoder"])


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.model_dir) / ".lock"], "finished epochs are kept; go on with --resume")

"""EEG of seen images → CLIP space, text states, latents or classes: contrastive training and its relatives.

    python finetune_eeg_to_clip.py --protocol within:sub-08 --encoder atm --output_dir pth_downtasks/things/atm_sub-08
    python finetune_eeg_to_clip.py … --encoder nice --average_train 4       # or ubp, sgdm, csbrain, shallow, …
    python finetune_eeg_to_clip.py … --protocol cross:sub-08                # a person never trained on; joint: all
    python finetune_eeg_to_clip.py … --target vision --clip_model facebook/dinov2-base --clip_layer 8
    python finetune_eeg_to_clip.py … --target text_states --encoder de_mlp --captions data/EEGImageNet/captions.jsonl
    python finetune_eeg_to_clip.py … --target classes --encoder eegnet --granularity coarse
    python finetune_eeg_to_clip.py … --target vae_latent --encoder low_level --image_model stabilityai/sdxl-turbo
    python finetune_eeg_to_clip.py … --target structure --encoder sgdm --structure_vae pth_downtasks/things/vae
    python finetune_eeg_to_clip.py … --shuffle_labels                       # the control: images change places
    accelerate launch --multi_gpu --num_processes 2 finetune_eeg_to_clip.py …    # --cuda -1 behind it: CPU processes

--epochs, --batch_size, --lr, --optimizer, --average_train default to what the encoder was published with
(models/recipes.py). The epoch is chosen on held-out training concepts (THINGS) or positions in the block
(EEG-ImageNet); the test is decoded once. Leaves in --output_dir: encoder_epochN.pth, metrics.jsonl, learning_curve.png,
run.json, results.json, decoded_test.jsonl; README.md (the model card) and model.safetensors with config.json (the best
epoch). --structure_vae and --foundation_dir take OWNER/NAME on the hub as well.
"""

import argparse
import math
from dataclasses import fields
from pathlib import Path

from datasets.alignment import ALIGNMENTS, METHODS
from datasets.description import of_images, one_of
from datasets.splits import PROTOCOLS, check_protocol, print_caution, protocol_named
from models import AUGMENTATIONS, CONTRASTIVE, EMBEDDERS, FEATURE_ENCODERS, POOLINGS, choose
from models.recipes import recipe_of
from stages import TARGETS
from utils import flags
from utils.errors import UserError, loading
from utils.paths import cache_folder, default
from utils.script import run_script, start_script

# flags that a checkpoint keeps
KEPT_FLAGS = "target objective protocol granularity clip_model clip_layer blur image_model token_pooling seed".split()
ENCODERS = list(EMBEDDERS | FEATURE_ENCODERS)  # eegnet is EEG-ImageNet's here, eegnet_8_2 the other one


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    flags.add_dataset_flags(parser, one_of(of_images()), "which dataset of seen images")
    flags.add_seen_images_flags(parser)
    add("--output_dir", "--model_dir", default=default("pth_downtasks/clip"),
        help="folder for checkpoints, metrics, results")
    flags.add_protocol_flags(parser, PROTOCOLS, check_protocol, "within")
    add("--granularity", default="all", help="EEGImageNet: all, coarse, fine0 … fine4")
    encoder = parser.add_argument_group("encoder").add_argument
    encoder("--encoder", **flags.named_in(ENCODERS), default="atm",
        help="csbrain: pretrained, frozen, a projection is trained; the others from scratch")
    encoder("--token_pooling", default="region", choices=list(POOLINGS), help="csbrain: how features become tokens")
    encoder("--subject_embedding", choices=("known", "shared"),
        help="atm: a token a person that is trained on, or one for all (default: known; of strangers shared)")
    encoder("--positions", choices=("none", "sinusoid"), default="none", help="atm: added to the electrodes")
    encoder("--atm_parts", nargs="+", choices=("attention", "tsconv", "mlp"), default=["attention", "tsconv", "mlp"],
        help="atm: the parts that are there, for the ablation")
    encoder("--de", choices=("gaussian", "published"), default="gaussian",
        help="de_mlp, mlp, rgnn: gaussian: entropy of each band; published: EEG-ImageNet's, which its weights read")
    part = parser.add_argument_group("what is read of a trial").add_argument
    part("--tmin", type=float, help="seconds after the image's onset (default: as the dataset says, 0 or 0.04)")
    part("--tmax", type=float, help="seconds after the image's onset; at least 0.1 after --tmin (default: 1 or 0.44)")
    part("--channels", nargs="+", default=["all"],
        help="all, regions such as occipital, posterior (THINGS: UBP's 17), or electrodes by name")
    flags.add_alignment_flags(part, ALIGNMENTS, METHODS)
    target = parser.add_argument_group("target and loss").add_argument
    target("--target", choices=list(TARGETS), default="image",
        help="image, text: CLIP embeddings of images, of sentences; vision: features of images in any vision model; "
        "text_states: of captions; classes: labels; vae_latent: the image model's latents of images; structure: image, "
        "and the latent of SGDM's VAE beside it")
    target("--objective", choices=(*CONTRASTIVE, "generation", "mse", "ce", "l1"),
        help="nce: contrastive; generation: 10 (0.9 MSE to raw embeddings + 0.1 NCE); mse; ce (default: nce, mse for "
        "text_states, ce for classes, l1 for vae_latent)")
    target("--clip_model", default="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        help="CLIP, and for vision any CLIP, SigLIP, DINOv2 or ViT: local folder or hub address")
    target("--clip_layer", type=int, nargs="+", metavar="N",
        help="vision: layers whose states are the target, side by side; 1: the first, -1: the last (default: what the "
        "model itself gives)")
    target("--blur", type=flags.number, nargs="+", metavar="S",
        help="image, vision, structure: mean over images blurred by Gaussians of S pixels of the model's input; 0: as "
        "it is (default: as it is)")
    target("--clip_features", nargs="+", metavar="FILE",
        help="image, structure: CLIP embeddings that others have computed, in place of --clip_model's: ATM's "
        "ViT-H-14_features_train.pt and _test.pt, NICE's .npy, or a row by image")
    target("--image_model", default="CompVis/stable-diffusion-v1-4",
        help="text_states, vae_latent: whose text encoder, whose VAE; local folder or hub address")
    target("--structure_vae", help="structure: run of train_structure.py --what vae")
    target("--captions", help="text_states: captions.jsonl of caption_images.py")
    target("--lambda_text", type=flags.share,
        help="share of the sentences' NCE beside the images' (default: 0.01 for atm's nce, else 0)")
    target("--mse_share", type=flags.share, default=0.9, help="of --objective generation")
    target("--positives", choices=("image", "row"), default="image",
        help="image: copies of an image in a batch are positives; row: they are negatives, as published")
    target("--unit_eeg", action=argparse.BooleanOptionalAction,
        help="bring EEG embeddings to unit length in NCE (default: as published, ubp not)")
    train = parser.add_argument_group("training").add_argument
    train("--epochs", type=flags.at_least(1), help="epochs (default: as published)")
    train("--passes", type=flags.at_least(1), default=1, help="passes over the training trials an epoch")
    train("--batch_size", type=flags.at_least(2), help="trials a step, of each process (default: as published)")
    train("--average_train", type=flags.at_least(1),
        help="repetitions of an image that are averaged for a training trial (default: as published)")
    train("--augment", nargs="+", choices=list(AUGMENTATIONS), default=[], help="random changes of training batches")
    train("--optimizer", choices=("adam", "adamw", "sgd"), help="sgd with momentum 0.9 (default: as published)")
    train("--lr", type=flags.number, help="learning rate (default: as published)")
    train("--weight_decay", type=flags.number, help="(default: as published)")
    train("--lr_schedule", choices=("constant", "cosine"), help="cosine: down to 1e-6 (default: as published)")
    train("--clip", type=flags.number, default=0.0, help="largest gradient norm; 0: no limit, as published")
    train("--test_repetitions", type=flags.at_least(1), help="averaged for a test image (default: all)")
    train("--shuffle_labels", action="store_true",
        help="images change places: over training trials, and as a whole in the test: the control")
    flags.add_resume_flags(parser)
    # fmt: on
    args = parser.parse_args()
    flags.choose_protocol(parser, args, PROTOCOLS, "within")
    if protocol_named(args.protocol)[0].apart_of_images is None:
        parser.error(f"--protocol {args.protocol} does not keep apart the images that people saw; choose another one")
    for name in ("epochs", "batch_size", "average_train", "optimizer", "lr", "weight_decay", "unit_eeg", "lr_schedule"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe_of(args.encoder), name))
    strangers = protocol_named(args.protocol)[0].tests_strangers
    if strangers and args.subject_embedding == "known":
        parser.error(f"--protocol {args.protocol} tests a person who has no token: --subject_embedding shared")
    args.subject_embedding = args.subject_embedding or ("shared" if strangers else "known")
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.utils.data import DataLoader, default_collate

from datasets.repetitions import Averages, averages, repetitions, some_repetitions, with_shuffled_images
from datasets.store import description_of_store
from datasets.trials import load_splits, part_of
from models.eeg_embedding import EEGEmbedding, embedder_named
from stages import retrieval
from stages.runs import LAST, Run
from stages.scores import score_rows
from stages.targets import TargetSettings, check_fits, images_of, without_lacking
from stages.tokens import augmentations, check_pretraining, encoder_for, with_features
from utils.checkpoints import fingerprint, read_checkpoint
from utils.device import end_processes, start_accelerator
from utils.processes import gathered, share
from utils.progress import progress
from utils.seeds import seed_everything

OPTIMIZERS = {
    "adam": lambda parameters, betas, **more: torch.optim.Adam(parameters, betas=betas, **more),
    "adamw": lambda parameters, betas, **more: torch.optim.AdamW(parameters, betas=betas, **more),
    "sgd": lambda parameters, betas, **more: torch.optim.SGD(parameters, momentum=0.9, **more),
}


def train_epoch(accelerator, model, loader, target, optimizer, augment, passes: int, clip: float, bar) -> float:
    """Passes over the training trials. Returns the mean loss."""
    model.train()
    losses, scale = [], accelerator.unwrap_model(model).scale
    for n, batch in (batch for _ in range(passes) for batch in loader):
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        for change in augment:
            batch["x"], batch["label"] = change(batch["x"], batch["label"])
        output = model(batch.pop("x"), batch["subject"])
        # the n rows of all processes, in each of them: a row's negatives are those of the whole batch
        output, *others = (gathered(accelerator, rows)[:n] for rows in (output, *batch.values()))
        loss = target.loss(output, dict(zip(batch, others, strict=True)), scale())
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
        bar.update(n)
    return sum(losses) / max(len(losses), 1)


def evaluate(accelerator, model, dataset, groups, target, people) -> tuple[list, dict]:
    """Rows of a split, and measures of what is no answer, in every process."""
    if not groups:
        return [], {}
    outputs = retrieval.embed(model, dataset, share(accelerator, groups), people, accelerator.device)
    return target.rows(gathered(accelerator, outputs)[: len(groups)], dataset, groups)


def main(args: argparse.Namespace) -> None:
    # the scale of similarities stands beside `forward`, and has no part in some losses
    accelerator, _ = start_accelerator(args.cuda, "fp32", 1, args.seed, static_graph=True)
    device, turn = accelerator.device, (accelerator.process_index, accelerator.num_processes)
    kind, net = choose(TARGETS, args.target), embedder_named(args.encoder)
    settle(args, kind, net)

    # ------------------------------------------------------------ trials: which, and which part of each
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words, "THINGS")
    args.downstream_dataset = description.name
    args.images_dir = args.images_dir or description.images_dir or default("data/THINGS/images")
    if not description.parts:
        raise UserError(f"{args.datasets_dir} is of {description.name}, whose trials have no images of their own")
    splits = load_splits(args.datasets_dir, description, args.protocol, granularity=args.granularity)
    args.window, args.regions, splits = part_asked(splits, args)
    given = {f.name: getattr(args, f.name) for f in fields(TargetSettings) if hasattr(args, f.name)}
    cache_dir = cache_folder(args.cache_dir, splits["train"].store.path)
    given |= {"images_dir": Path(args.images_dir), "cache_dir": cache_dir}
    target = kind(TargetSettings(**given, train_scale=recipe_of(args.encoder).train_scale, device=device))
    splits, absent, left_out = without_lacking(splits, target.lacking(images_of(splits)))
    if args.shuffle_labels:
        splits = {mode: with_shuffled_images(dataset, args.seed) for mode, dataset in splits.items()}
    train, val, test = splits.values()
    description = train.description
    groups = {"train": averages(train, args.average_train), "val": repetitions(val)}
    groups["test"] = some_repetitions(repetitions(test), args.test_repetitions, args.seed)
    people = sorted({trial.subject for trial in train.trials}) if args.subject_embedding == "known" else []

    # ------------------------------------------------------------ targets, image by image
    with accelerator.main_process_first():  # the others read what it keeps
        target.build(splits, groups["train"])

    # ------------------------------------------------------------ encoder
    seed_everything(args.seed)
    settings = settings_of(args, kind, net, target, train, people)
    depends_on = {"store": train.store.fingerprint, "list of trials": train.store.listed}
    depends_on["set of targets: other images, CLIP, captions, image model or VAE"] = target.digest
    if "tokens" in net.gives and net.pretrained:
        encoder = encoder_for(train, args.encoder, args.foundation_dir, seed=args.seed)
        check_pretraining(encoder, test)
        depends_on["encoder"] = fingerprint(encoder)
        splits, _ = with_features(splits, encoder, True, args.token_pooling, args.cache_dir, device, turn)
        n_tokens, token_width = splits["train"].tokens.shape[1:]
        settings |= {"n_tokens": n_tokens, "token_width": token_width}
    model = EEGEmbedding(**settings)
    augment = augmentations(args.augment, model.reads, train)
    if model.reads != "tokens":
        splits = {mode: dataset.prepared(model.prepare) for mode, dataset in splits.items()}
    items = Averages(splits["train"], groups["train"], people, target.tables)
    run = Run(Path(args.output_dir), ["encoder_epoch{}.pth"], target.readout, args.keep, turn)
    asked = {k: v for k, v in vars(args).items() if k not in ("tmin", "tmax", "channels")}  # window and regions say it
    run.open(asked, {"images_dir", "output_dir"}, depends_on)
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    n = len(items)
    if not run.state and model.reads != "signal":
        own = progress(share(accelerator, range(n)), desc="features", unit="trial", leave=False)
        model.standardise_by(gathered(accelerator, torch.stack([items[k]["x"] for k in own]))[:n])
    n_parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{description.name}, {args.protocol}: {' / '.join(str(len(of)) for of in groups.values())} train / val / test "
        f"items of {' / '.join(str(len(d)) for d in splits.values())} trials; {args.encoder} {n_parameters - 1:,} "
        f"parameters and a scale; {accelerator.num_processes} process(es) on {device}"
    )
    model.to(device)
    how = {"lr": args.lr, "weight_decay": args.weight_decay, "betas": recipe_of(args.encoder).betas}
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), **how)
    if run.state:
        with loading(*LAST):
            model.load_state_dict(run.state["model"])
            optimizer.load_state_dict(run.state["optimizer"])
    plain, model = model, accelerator.prepare(model)

    # ------------------------------------------------------------ training
    facts = {
        "dataset": description.name, "classes": list(description.classes), "settings": settings, "people": people,
        **{name: getattr(args, name) for name in KEPT_FLAGS}, **target.facts, **train.facts,
        "shuffled": args.shuffle_labels, "encoder_fingerprint": depends_on.get("encoder", ""),
        "seen": sorted({t.image for dataset in (train, val) for t in dataset.trials}), "absent": absent,
    }  # fmt: skip
    run.begin(splits, args.protocol, left_out=left_out, **description.own_record())
    whole = args.batch_size * accelerator.num_processes  # a batch of all processes
    lonely = n % whole == 1 and n > 1  # batch normalisation and contrast need two
    for epoch in run.epochs(args.epochs):
        # anew each epoch, so a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, args.lr_schedule, epoch, args.epochs)
        order = torch.Generator().manual_seed(args.seed * 100_003 + epoch)  # the same in all processes
        loader = DataLoader(
            range(n), whole, shuffle=True, generator=order, drop_last=lonely,
            collate_fn=lambda batch: (len(batch), default_collate([items[k] for k in share(accelerator, batch, 2)])),
        )  # fmt: skip
        name = f"epoch {epoch}/{args.epochs}"
        with progress(total=n * args.passes, desc=name, unit="trial", disable=not run.writes) as bar:
            loss = train_epoch(accelerator, model, loader, target, optimizer, augment, args.passes, args.clip, bar)
        run.trained(loss)
        # through what DDP made of the model: it hands on the first process's running means of batch normalisation
        rows, measures = evaluate(accelerator, model, splits["val"], groups["val"], target, people)
        weights = {"model": plain.state_dict()}
        state = {"optimizer": optimizer.state_dict()} | weights
        print(run.save_epoch(loss, score_rows(rows) | measures, [facts | weights], state, lr=args.lr))
        accelerator.wait_for_everyone()

    # ------------------------------------------------------------ test: the best epoch, reloaded from disk
    model = plain
    model.load_state_dict(read_checkpoint(run.best_file())["model"])
    rows, measures = evaluate(accelerator, model, splits["test"], groups["test"], target, people)
    run.finish(rows, args.shuffle_labels, measures or None)
    print_caution(description, args.protocol)
    end_processes(accelerator)


# ---------------------------------------------------------------- what main asks for


def settle(args: argparse.Namespace, kind: type, net: type) -> None:
    """Fill in what depends on target and encoder. Raises UserError where flags do not go together."""
    args.objective = args.objective or kind.objectives[0]
    if args.lambda_text is None:
        sentences = kind.of_sentences and args.objective in CONTRASTIVE
        args.lambda_text = recipe_of(args.encoder).lambda_text if sentences else 0.0
    check_fits(args.target, kind, args.encoder, net, vars(args))
    for flag in ("positions", "atm_parts"):
        if getattr(args, flag) != args.defaults[flag] and flag not in getattr(net, "options", {}):
            raise UserError(f"--{flag}: --encoder {args.encoder} has none; --positions and --atm_parts are atm's")


def settings_of(args: argparse.Namespace, kind: type, net: type, target, train, people: list[str]) -> dict:
    """What an `EEGEmbedding` of signals is made with."""
    return {
        "name": args.encoder, "out": target.out, "electrodes": list(train.montage.electrodes), "de": args.de,
        "n_times": train.n_times, "sfreq": train.sfreq, "units": train.units,
        **({"n_subjects": max(len(people), 1)} if net.takes_people else {}),
        **{parameter: getattr(args, flag) for flag, parameter in getattr(net, "options", {}).items()},
        **({"latents": list(target.shape)} if kind.wants == "latents" else {}),
    }  # fmt: skip


def part_asked(splits: dict, args: argparse.Namespace) -> tuple:
    """The window and electrodes that are asked for, as the run's record keeps them; splits that read them alone."""
    tmin, tmax, channels = args.tmin, args.tmax, args.channels
    store, description = splits["train"].store, splits["train"].description
    start = float(store.meta.get("preprocessing", {}).get("tmin", 0.0))
    stored = (start, start + store.shape[1] / store.meta["sfreq"])
    first, last = description.looks_at or stored
    tmin, tmax = (first if tmin is None else tmin), (last if tmax is None else tmax)
    if not (stored[0] - 1e-6 <= tmin and tmin + 0.1 - 1e-6 <= tmax <= stored[1] + 1e-6):
        there = f"trials go from {stored[0]:g} to {stored[1]:g} s, and a window lasts 0.1 s or more"
        raise UserError(f"--tmin {tmin:g} --tmax {tmax:g}: {there}")
    regions = description.named_channels(channels)
    part = part_of(vars(args)) | {"window": (tmin - start, tmax - start), "regions": regions}
    splits = {mode: dataset.part(**part) for mode, dataset in splits.items()}
    return [tmin, tmax], None if regions is None else list(channels), splits


def learning_rate(lr: float, schedule: str, epoch: int, epochs: int) -> float:
    """Of an epoch; cosine: from `lr` down to 1e-6."""
    return lr if schedule == "constant" else 1e-6 + (lr - 1e-6) * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume")

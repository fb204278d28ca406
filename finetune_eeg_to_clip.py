"""EEG of seen images → CLIP space, text states, latents or classes: contrastive training and its relatives, for every encoder.

    python finetune_eeg_to_clip.py --downstream_dataset THINGS --datasets_dir data/THINGS/processed_lmdb --images_dir data/THINGS/images \
        --subject sub-08 --encoder atm --output_dir pth_downtasks/things/atm_sub-08                  # zero-shot retrieval
    python finetune_eeg_to_clip.py … --encoder nice --average_train 4 --lambda_text 0                # or ubp, sgdm, csbrain, …
    python finetune_eeg_to_clip.py … --setting cross                        # a person never trained on; joint: all together
    python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet … --target text_states --encoder de_mlp --captions captions.jsonl
    python finetune_eeg_to_clip.py --downstream_dataset EEGImageNet … --target classes --encoder eegnet --granularity coarse
    python finetune_eeg_to_clip.py … --target vae_latent --encoder low_level --image_model stabilityai/sdxl-turbo    # ATM's low level
    python finetune_eeg_to_clip.py … --target structure --encoder sgdm --structure_vae pth_downtasks/things/vae
    python finetune_eeg_to_clip.py … --shuffle_labels                       # the control: images change places; --resume: go on

--epochs, --batch_size, --lr, --optimizer, --average_train default to what the encoder was published with (models/recipes.py).
The epoch is chosen on held-out training concepts (THINGS) or positions in the block (EEG-ImageNet); test trials are looked at once.
Leaves in --output_dir: encoder_epochN.pth, metrics.jsonl, learning_curve.png, run.json, results.json, decoded_test.jsonl.
"""

import argparse
import hashlib
import math
import time
from dataclasses import asdict
from pathlib import Path

from datasets.description import load_description, of_images
from models import EMBEDDERS
from models.recipes import recipe_of
from utils import flags
from utils.errors import UserError, loading, run_script, start_script
from utils.paths import cache_folder, default

OBJECTIVES = {
    "image": ("nce", "generation", "mse"),
    "text": ("nce", "mse"),
    "text_states": ("mse",),
    "classes": ("ce",),
    "vae_latent": ("l1",),
    "structure": ("nce",),
}
SINGLE_LAYER = ("de_mlp", "mlp", "rgnn", "eegnet")  # whose last layer alone grows with 77 · 768 text states


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add("--downstream_dataset", choices=of_images(), default="THINGS", help="which dataset of seen images")
    add("--datasets_dir", default=default("data/THINGS/processed_lmdb"), help="trial store")
    add("--images_dir", default=default("data/THINGS/images"), help="folder of the images that were seen")
    add("--output_dir", "--model_dir", default=default("pth_downtasks/clip"),
        help="folder for checkpoints, metrics and results")  # fmt: skip
    add("--setting", choices=("within", "cross", "joint", "day"), default="within",
        help="within: one person; cross: tested on --subject, trained on all others; joint: all people; day: one person's other day")  # fmt: skip
    add("--subject", help="the person of within, cross and day, e.g. sub-08 or S03")
    add("--granularity", default="all", help="EEGImageNet: all, coarse, fine0 … fine4")
    encoder = parser.add_argument_group("encoder").add_argument
    encoder("--encoder", choices=[*EMBEDDERS, "csbrain"], default="atm",
        help="csbrain: pretrained, frozen, a projection is trained; the others from scratch")  # fmt: skip
    encoder("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    encoder("--cache_dir", help="folder of cached targets and tokens (default: token_cache beside --datasets_dir)")
    encoder("--token_pooling", default="region", choices=("region", "hemisphere", "electrode"),
        help="csbrain: how features become tokens")  # fmt: skip
    encoder("--subject_embedding", choices=("known", "shared"),
        help="atm: a token a person that is trained on, or one for all (default: known; shared for --setting cross)")  # fmt: skip
    encoder("--positions", choices=("none", "sinusoid"), default="none", help="atm: what is added to the electrodes")
    encoder("--atm_parts", nargs="+", choices=("attention", "tsconv", "mlp"), default=["attention", "tsconv", "mlp"],
        help="atm: the parts that are there, for the ablation")  # fmt: skip
    encoder("--de", choices=("gaussian", "published"), default="gaussian",
        help="de_mlp, mlp, rgnn: which differential entropy")  # fmt: skip
    part = parser.add_argument_group("what is read of a trial").add_argument
    part("--tmin", type=float, help="seconds after the image's onset (default: as the dataset says, 0 or 0.04)")
    part("--tmax", type=float, help="seconds after the image's onset; at least 0.1 after --tmin (default: 1 or 0.44)")
    part("--channels", nargs="+", default=["all"],
        help="all, regions such as occipital, posterior (THINGS: UBP's 17), or electrodes by name")  # fmt: skip
    target = parser.add_argument_group("target and loss").add_argument
    target("--target", choices=list(OBJECTIVES), default="image",
        help="image, text: CLIP embeddings of images, of sentences; text_states: of captions; classes: labels; vae_latent: the image model's latents of images; structure: image, and the latent of SGDM's VAE beside it")  # fmt: skip
    target("--objective", choices=("nce", "generation", "mse", "ce", "l1"),
        help="nce: contrastive; generation: 10 (0.9 MSE to raw embeddings + 0.1 NCE); mse; ce (default: nce, mse for text_states, ce for classes, l1 for vae_latent)")  # fmt: skip
    target("--clip_model", default="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", help="CLIP: local folder or hub address")
    target("--image_model", default="CompVis/stable-diffusion-v1-4",
        help="text_states, vae_latent: whose text encoder, whose VAE; local folder or hub address")  # fmt: skip
    target("--structure_vae", help="structure: run of train_structure.py --what vae")
    target("--captions", help="text_states: captions.jsonl of caption_images.py")
    target("--lambda_text", type=float,
        help="share of the sentences' NCE beside the images' (default: 0.01 for atm's nce, else 0)")  # fmt: skip
    target("--mse_share", type=float, default=0.9, help="of --objective generation")
    target("--positives", choices=("image", "row"), default="image",
        help="image: copies of an image in a batch are positives; row: they are negatives, as published")  # fmt: skip
    target("--unit_eeg", action=argparse.BooleanOptionalAction,
        help="bring EEG embeddings to unit length in NCE (default: as published, ubp not)")  # fmt: skip
    train = parser.add_argument_group("training").add_argument
    train("--epochs", type=int, help="epochs (default: as published)")
    train("--passes", type=int, default=1,
        help="passes over the training trials an epoch, which ends with validation and a checkpoint")  # fmt: skip
    train("--batch_size", type=int, help="trials an optimiser step (default: as published)")
    train("--average_train", type=int,
        help="repetitions of an image that are averaged for a training trial (default: as published)")  # fmt: skip
    train("--optimizer", choices=("adam", "adamw", "sgd"), help="sgd with momentum 0.9 (default: as published)")
    train("--lr", type=float, help="learning rate (default: as published)")
    train("--weight_decay", type=float, help="(default: as published)")
    train(
        "--lr_schedule", choices=("constant", "cosine"), help="cosine: by epochs, down to 1e-6 (default: as published)"
    )
    train("--clip", type=float, default=0.0, help="largest gradient norm; 0: no limit, as published")
    train("--test_repetitions", type=int, help="of a test image that are averaged, drawn by --seed (default: all)")
    train("--shuffle_labels", action="store_true",
        help="images change places: over training trials, and as a whole in the test: the control")  # fmt: skip
    train("--resume", action="store_true", help="go on with the run that is in --output_dir")
    train("--keep", nargs="+", choices=("best", "last", "all"), default=["best"],
        help="which epochs' checkpoints stay; the best one always does")  # fmt: skip
    flags.add_run_flags(parser)
    args = parser.parse_args()
    given = args.lambda_text is not None
    recipe = asdict(recipe_of(args.encoder))
    for name in ("epochs", "batch_size", "average_train", "optimizer", "lr", "weight_decay", "lambda_text", "unit_eeg",
                 "lr_schedule"):  # fmt: skip
        if getattr(args, name) is None:
            setattr(args, name, recipe[name])
    args.objective = args.objective or OBJECTIVES[args.target][0]
    if args.objective != "nce" and not given:
        args.lambda_text = 0.0
    if args.objective not in OBJECTIVES[args.target]:
        parser.error(f"--target {args.target} goes with --objective {' or '.join(OBJECTIVES[args.target])}")
    flags.check_setting(parser, args)
    if args.target == "text_states" and (not args.captions or args.encoder not in SINGLE_LAYER):
        parser.error(f"--target text_states needs --captions and one of the encoders {', '.join(SINGLE_LAYER)}")
    if (args.target == "vae_latent") != (args.encoder == "low_level"):
        parser.error("--target vae_latent and --encoder low_level go together")
    if (args.target == "structure") != bool(args.structure_vae):
        parser.error("--target structure needs --structure_vae, and nothing else does")
    if args.target in ("vae_latent", "structure") and args.lambda_text and given:
        parser.error(f"--lambda_text has no part in --target {args.target}")
    if args.target == "structure" and args.setting == "day":
        parser.error(
            "--target structure does not go with --setting day: its VAE would be trained on the images of the other day, which are the same"
        )
    if args.target != "image" and not given:
        args.lambda_text = 0.0
    if args.setting == "cross" and args.subject_embedding == "known":
        parser.error("--setting cross tests a person who has no token; --subject_embedding shared trains one for all")
    if args.encoder != "atm" and (args.positions != "none" or len(args.atm_parts) < 3):
        parser.error("--positions and --atm_parts are atm's")
    args.subject_embedding = args.subject_embedding or ("shared" if args.setting == "cross" else "known")
    flags.check_at_least(parser, args, epochs=1, passes=1, batch_size=2, average_train=1, test_repetitions=1, seed=0)
    flags.check_numbers(parser, args, "lr", "weight_decay", "clip", "lambda_text")
    flags.check_share(parser, args, "lambda_text", "mse_share")
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datasets.repetitions import Averages, averages, repetitions, shuffled_images, some_repetitions
from datasets.trials import load_splits
from models.contrastive import info_nce
from models.eeg_embedding import EEGEmbedding
from stages import retrieval, structure
from stages.runs import LAST, best_epoch, finish_run, keep_epochs, open_run, save_history, validation_line
from stages.scores import measured, score_rows
from stages.targets import build_targets
from stages.tokens import encoder_for, give_tokens
from utils.checkpoints import as_bytes, fingerprint, read_checkpoint, save_checkpoint
from utils.device import pick_device
from utils.files import write_json
from utils.hub import model_identity
from utils.progress import progress
from utils.seeds import seed_everything

FILES = ("encoder_epoch{}.pth",)  # an epoch's

# ---------------------------------------------------------------- loss, one epoch, rows


def loss_of(args, model, output: torch.Tensor, batch: dict) -> torch.Tensor:
    """The objective of one batch; `batch` has label, image (which one, as a number), main and text targets."""
    if args.objective == "ce":
        return F.cross_entropy(output, batch["label"])
    if args.objective == "mse":
        return F.mse_loss(output, batch["main"])
    if args.objective == "l1":
        return F.l1_loss(output, batch["main"].flatten(1))
    copies = batch["image"] if args.positives == "image" else None
    scale = model.scale() if recipe_of(args.encoder).train_scale else 1 / 0.07
    if args.target == "structure":  # SGDM: CLIP's part, then the latent of its VAE
        width, latent = batch["main"].shape[1], batch["structure"]
        output, decoded = output[:, :width], output[:, width:]
        extra = info_nce(decoded, latent, 1 / 0.07, copies) + F.mse_loss(decoded, latent) / batch["variance"]
        return info_nce(output, batch["main"], scale, copies, args.unit_eeg) + extra
    nce = info_nce(output, batch["main"], scale, copies, args.unit_eeg)
    if "text" in batch:
        nce = (1 - args.lambda_text) * nce + args.lambda_text * info_nce(
            output, batch["text"], scale, copies, args.unit_eeg
        )
    if args.objective == "nce":
        return nce
    return 10 * (args.mse_share * F.mse_loss(output, batch["main"]) + (1 - args.mse_share) * nce)


def train_epoch(args, model, loader, groups, tables, numbers, people, optimizer, device, bar) -> float:
    """Passes over the training trials. Returns the mean loss."""
    model.train()
    total, steps = 0.0, 0
    trained_on = sorted({group.image for group in groups}) if "structure" in tables else []
    variance = torch.stack([tables["structure"][image] for image in trained_on]).float().var() if trained_on else None
    for _ in range(args.passes):
        for items in loader:
            of = [groups[index] for index in items["index"].tolist()]
            batch = {
                name: torch.stack([table[g.image] for g in of]).float().to(device) for name, table in tables.items()
            }
            batch["label"] = torch.tensor([g.label for g in of], device=device)
            batch["variance"] = variance
            batch["image"] = torch.tensor([numbers[g.image] for g in of], device=device)
            ids = retrieval.subject_ids([g.subject for g in of], people).to(device)
            loss = loss_of(args, model, model(items["x"].to(device), ids), batch)
            optimizer.zero_grad()
            loss.backward()
            if args.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            total, steps = total + float(loss.detach()), steps + 1
            bar.update(len(of))
    return total / max(steps, 1)


def evaluate(
    args, model, dataset, groups, tables, prototypes, people, device, vae=None, centre=None
) -> tuple[list, dict]:
    """Rows of a split (retrieval among what nobody trained on, or classes), and measures of what is no answer.

    centre : the training images' mean latents. All images share it, and whoever draws it every time would seem to know something.
    """
    if not groups:
        return [], {}
    outputs, measures = retrieval.embed(model, dataset, groups, people, device), {}
    if args.target == "classes":
        return retrieval.class_rows(dataset, groups, outputs.softmax(dim=1), "classifier"), {}
    if args.target == "vae_latent":
        own = torch.stack([tables["main"][group.image] for group in groups]).flatten(1)
        return [], {"latents": measured("correlation", retrieval.correlation(outputs - centre, own - centre).tolist())}
    if args.target == "structure":
        width = len(tables["main"][groups[0].image])
        paths = retrieval.image_paths([group.image for group in groups], Path(args.images_dir))
        maps = structure.decoded_maps(vae, outputs[:, width:])
        outputs, measures = outputs[:, :width], structure.map_measures(maps, paths)
    if prototypes is not None:
        p = retrieval.prototype_probabilities(outputs, *prototypes)
        return retrieval.class_rows(dataset, groups, p, "prototype"), measures
    if dataset.mode == "val":
        return retrieval.held_out_rows(dataset, groups, outputs, tables["main"]), measures
    images = sorted({group.image for group in groups})
    targets = torch.stack([tables["main"][image] for image in images])
    return retrieval.retrieval_rows(dataset, groups, outputs, targets, images), measures


def main(args: argparse.Namespace) -> None:
    output_dir, device = Path(args.output_dir), pick_device(args.cuda)
    description = load_description(args.downstream_dataset)

    # ------------------------------------------------------------ trials: which, and which part of each
    splits = load_splits(args.datasets_dir, description, args.protocol, granularity=args.granularity)
    args.window, args.regions = look(args, splits, description)
    if args.shuffle_labels:
        for mode, dataset in splits.items():
            dataset.trials, dataset.labels = shuffled_images(dataset.trials, dataset.labels, args.seed, mode == "test")
    train, val, test = splits.values()
    description = train.description
    groups = {"train": averages(train, args.average_train), "val": repetitions(val),
              "test": some_repetitions(repetitions(test), args.test_repetitions, args.seed)}  # fmt: skip
    people = sorted({trial.subject for trial in train.trials}) if args.subject_embedding == "known" else []

    # ------------------------------------------------------------ targets, image by image
    cache_dir = cache_folder(args.cache_dir, train.store.path)
    vae, told = structure.read_vae(Path(args.structure_vae)) if args.structure_vae else (None, {})
    if vae:
        structure.must_not_have_seen(told, Path(args.structure_vae), [t.image for t in test.trials])
    tables = build_targets(
        args.target, splits, Path(args.images_dir), cache_dir, clip_model=args.clip_model, image_model=args.image_model,
        captions=args.captions, sentences=bool(args.lambda_text), vae=vae, device=device,
    )  # fmt: skip
    digest = hashlib.sha256()
    for table in tables.values():
        for image in sorted(table):
            digest.update(as_bytes(table[image]))
    shapes = {tuple(target.shape) for target in tables.get("main", {}).values()}
    out = len(description.classes) if args.target == "classes" else math.prod(shape := shapes.pop())
    if vae:
        out += len(next(iter(tables["structure"].values())))
    prototypes = None
    if (
        args.target in ("image", "text", "text_states", "structure") and description.apart != "concept"
    ):  # classes that are trained on
        table = retrieval.class_prototypes(groups["train"], tables["main"], len(description.classes))
        prototypes = (table, table.mean(dim=0) if args.target == "text_states" else None)
    centre = None
    if args.target == "vae_latent":
        centre = (
            torch.stack([tables["main"][i].float() for i in sorted({g.image for g in groups["train"]})])
            .mean(dim=0)
            .flatten()
        )
    numbers = {image: k for k, image in enumerate(sorted({g.image for g in groups["train"]}))}

    # ------------------------------------------------------------ encoder
    seed_everything(args.seed)
    settings = {
        "name": args.encoder, "out": out, "electrodes": list(train.montage.electrodes), "n_times": train.n_times,
        "sfreq": train.sfreq, "units": train.units, "de": args.de,
    }  # fmt: skip
    depends_on = {"store": train.store.fingerprint, "list of trials": train.store.listed,
                  "set of targets: other images, CLIP, captions, image model or VAE": digest.hexdigest()}  # fmt: skip
    if args.encoder == "atm":
        settings |= {"n_subjects": max(len(people), 1), "positions": args.positions, "parts": args.atm_parts}
    if args.encoder == "low_level":
        settings["latents"] = list(shape)
    if args.encoder not in EMBEDDERS:
        encoder = encoder_for(train, args.encoder, args.foundation_dir, seed=args.seed)
        depends_on["encoder"] = fingerprint(encoder)
        give_tokens(splits.values(), encoder, True, args.token_pooling, args.cache_dir, device)
        settings |= {"n_tokens": train.tokens.shape[1], "token_width": train.tokens.shape[2]}
    model = EEGEmbedding(**settings)
    if args.encoder in EMBEDDERS:
        for dataset in splits.values():
            dataset.prepare = model.prepare
    asked = {k: v for k, v in vars(args).items() if k not in ("tmin", "tmax", "channels")}  # window and regions say it
    record, state = open_run(output_dir, asked, {"images_dir", "output_dir"}, depends_on, "encoder_epoch*.pth")
    if not state and model.reads != "signal":
        items = Averages(train, groups["train"])
        features = [items[k]["x"] for k in progress(range(len(items)), desc="features", unit="trial", leave=False)]
        model.standardise_by(torch.stack(features))
    n_parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{description.name}, {args.protocol}: {' / '.join(str(len(of)) for of in groups.values())} train / val / test items of "
        f"{' / '.join(str(len(d)) for d in splits.values())} trials; {args.encoder} {n_parameters - 1:,} parameters and a scale; {device}"
    )
    model.to(device)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    more = {"momentum": 0.9} if args.optimizer == "sgd" else {"betas": recipe_of(args.encoder).betas}
    optimizer = kinds[args.optimizer](model.parameters(), lr=args.lr, weight_decay=args.weight_decay, **more)
    if state:
        with loading(*LAST):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])

    # ------------------------------------------------------------ training
    clip_identity = model_identity(args.clip_model) if args.target in ("image", "text", "structure") else ""
    if not state:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(record, output_dir / "run.json")
    facts = {
        "dataset": description.name, "classes": list(description.classes), "settings": settings, "people": people,
        "target": args.target, "objective": args.objective, "protocol": args.protocol, "granularity": args.granularity,
        "clip_model": args.clip_model, "clip": clip_identity, "clip_width": shape[0] if vae else None, "vae": fingerprint(vae) if vae else "",
        "image_model_identity": model_identity(args.image_model) if args.target == "vae_latent" else "",
        "image_model": args.image_model, "token_pooling": args.token_pooling,
        "encoder_fingerprint": depends_on.get("encoder", ""), "shuffled": args.shuffle_labels, "seed": args.seed,
        "prototypes": None if prototypes is None else prototypes[0], "centre": None if prototypes is None else prototypes[1],
        "seen": sorted({t.image for d in (train, val) for t in d.trials}), **train.facts,
    }  # fmt: skip
    readout = {"classes": "classifier", "vae_latent": "latents"}.get(args.target) or (
        "retrieval" if prototypes is None else "prototype"
    )
    history = state.get("history", [])
    if history:  # it may have been killed before this
        keep_epochs(output_dir, history, args.keep, readout, FILES)
    for epoch in range(len(history) + 1, args.epochs + 1):
        seed_everything(
            args.seed, epoch
        )  # anew each epoch, so a resumed run repeats what the interrupted one would have done
        started, n = time.perf_counter(), len(groups["train"])
        if args.lr_schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = 1e-6 + (args.lr - 1e-6) * (1 + math.cos(math.pi * (epoch - 1) / args.epochs)) / 2
        order = torch.Generator().manual_seed(args.seed * 100_003 + epoch)
        alone = n % args.batch_size == 1 and n > 1  # batch normalisation and contrast need two
        loader = DataLoader(
            Averages(train, groups["train"]), args.batch_size, shuffle=True, generator=order, drop_last=alone
        )
        with progress(total=n * args.passes, desc=f"epoch {epoch}/{args.epochs}", unit="trial") as bar:
            loss = train_epoch(args, model, loader, groups["train"], tables, numbers, people, optimizer, device, bar)
        if not math.isfinite(loss):
            raise UserError(f"the loss of epoch {epoch} is {loss}; lower --lr")
        rows, measures = evaluate(args, model, val, groups["val"], tables, prototypes, people, device, vae, centre)
        scores = {name: score.as_dict() for name, score in (score_rows(rows) | measures).items()}
        history.append({"epoch": epoch, "phase": "joint", "train_loss": loss, "lr": args.lr, "val": scores})
        weights = {"model": model.state_dict()}
        save_checkpoint(facts | {"epoch": epoch} | weights, output_dir / f"encoder_epoch{epoch}.pth")
        chance = next((score["chance"] for score in scores.values() if "chance" in score), None)
        save_history(history, {"seconds": time.perf_counter() - started}, chance, output_dir)
        save_checkpoint({"history": history, "optimizer": optimizer.state_dict()} | weights, output_dir / "last.pth")
        keep_epochs(output_dir, history, args.keep, readout, FILES)
        print(f"epoch {epoch}: loss {loss:.4f}, validation {validation_line(scores)}")

    # ------------------------------------------------------------ the best epoch, reloaded from disk, on the test trials, once
    best = best_epoch(history, readout)
    model.load_state_dict(read_checkpoint(output_dir / f"encoder_epoch{best['epoch']}.pth")["model"])
    rows, measures = evaluate(args, model, test, groups["test"], tables, prototypes, people, device, vae, centre)
    finish_run(output_dir, rows, best, readout, args.shuffle_labels, measures or None)
    if caution := description.caution_for(args.protocol):
        print(caution)


def look(args, splits: dict, description) -> tuple[list[float], list[str] | None]:
    """Make all splits read the window and the electrodes that were asked for; both, as the run's record keeps them."""
    store = splits["train"].store
    start = float(store.meta.get("preprocessing", {}).get("tmin", 0.0))
    stored = (start, start + store.shape[1] / store.meta["sfreq"])
    tmin, tmax = description.looks_at or stored
    tmin, tmax = (tmin if args.tmin is None else args.tmin), (tmax if args.tmax is None else args.tmax)
    if not (stored[0] - 1e-6 <= tmin and tmin + 0.1 - 1e-6 <= tmax <= stored[1] + 1e-6):
        raise UserError(
            f"--tmin {tmin:g} --tmax {tmax:g}: trials go from {stored[0]:g} to {stored[1]:g} s, and a window lasts 0.1 s or more"
        )
    regions = description.named_channels(args.channels)
    for dataset in splits.values():
        dataset.look_at((tmin - start, tmax - start), regions)
    return [tmin, tmax], None if regions is None else list(args.channels)


if __name__ == "__main__":
    run_script(
        lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume"
    )  # fmt: skip

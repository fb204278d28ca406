"""Embeddings of EEG → embeddings of images (a diffusion prior), or → the tokens that a captioner sees.

    python train_prior.py --what prior --model_dir pth_downtasks/things/atm_sub-08 --datasets_dir data/THINGS/processed_lmdb \
        --images_dir data/THINGS/images --output_dir pth_downtasks/things/prior_sub-08
    python train_prior.py --what caption --captioner microsoft/git-large-coco --model_dir … --output_dir pth_downtasks/things/caption_sub-08
    python train_prior.py … --shuffle_labels                        # the control: images change places; --resume: go on

--model_dir is a run of finetune_eeg_to_clip.py with --target image (or structure); a prior of a control is a control itself. Both are
trained on the run's training trials and chosen by the cosine on its validation trials; the test is looked at once.
prior, test: rows with two read-outs, retrieval by the EEG's embedding and by the prior's; the cosine of both to the image's own
embedding, and how far a trial's samples lie from each other. caption, test: captions.jsonl, decoded and of the true image.
Leaves in --output_dir: NAME_epochN.pth, metrics.jsonl, learning_curve.png, run.json, results.json, decoded_test.jsonl.
"""

import argparse
import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

from utils import flags
from utils.errors import UserError, loading, run_script, start_script
from utils.paths import cache_folder, default


@dataclass(frozen=True)
class Recipe:
    """How one was published."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: str
    warmup: int = 0
    clip: float = 0.0


RECIPES = {
    "prior": Recipe(epochs=150, batch_size=1024, lr=1e-3, optimizer="Adam", warmup=500, clip=1.0),
    "caption": Recipe(epochs=30, batch_size=32, lr=1e-3, optimizer="AdamW"),
}


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    add = parser.add_argument
    add(
        "--what",
        choices=list(RECIPES),
        default="prior",
        help="prior: to CLIP embeddings; caption: to a captioner's tokens",
    )
    add("--model_dir", required=True, help="run of finetune_eeg_to_clip.py, or an encoder_epochN.pth in it")
    add("--datasets_dir", default=default("data/THINGS/processed_lmdb"), help="trial store")
    add("--images_dir", default=default("data/THINGS/images"), help="folder of the images that were seen")
    add("--output_dir", default=default("pth_downtasks/prior"), help="folder for checkpoints, metrics and results")
    add("--cache_dir", help="folder of cached targets and tokens (default: token_cache beside --datasets_dir)")
    add("--foundation_dir", default=default("pth/CSBrain.pth"), help="csbrain: its checkpoint")
    add("--captioner", default="microsoft/git-large-coco",
        help="caption: GIT, local folder or hub address; its tokens of 16,740 images take 8.8 GB in --cache_dir")  # fmt: skip
    train = parser.add_argument_group("training").add_argument
    train("--epochs", type=int, help="epochs (default: as published, 150 and 30)")
    train("--batch_size", type=int, help="trials an optimiser step (default: as published, 1024 and 32)")
    train("--lr", type=float, help="learning rate, cosine to 0 (default: as published, 1e-3)")
    train("--warmup", type=int, help="steps before the full learning rate (default: as published, 500 and 0)")
    train("--drop", type=float, default=0.1, help="prior: share of trials that lose their condition, for guidance")
    train("--standardise", choices=("dimensions", "components"), default="dimensions",
        help="prior: each dimension of the targets; or their principal components, where few images or a small CLIP fill few dimensions")  # fmt: skip
    train("--average_train", type=int, default=1, help="repetitions that are averaged for a training trial")
    train("--validate_every", type=int, default=1, help="epochs from one validation and checkpoint to the next")
    train("--shuffle_labels", action="store_true", help="images change places: the control of this step alone")
    train("--resume", action="store_true", help="go on with the run that is in --output_dir")
    train("--keep", nargs="+", choices=("best", "last", "all"), default=["best"],
        help="which epochs' checkpoints stay; the best one always does")  # fmt: skip
    sampling = parser.add_argument_group("prior: sampling").add_argument
    sampling("--prior_steps", type=int, default=50, help="steps of 1000")
    sampling("--prior_guidance", type=float, default=5.0, help="times what the condition adds")
    sampling("--samples", type=int, default=4, help="of a test trial, for their spread")
    flags.add_run_flags(parser)
    args = parser.parse_args()
    for name in ("epochs", "batch_size", "lr", "warmup"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(RECIPES[args.what], name))
    flags.check_at_least(parser, args, epochs=1, batch_size=1, average_train=1, validate_every=1, samples=1,
                         seed=0, warmup=0)  # fmt: skip
    flags.check_prior_steps(parser, args)
    flags.check_numbers(parser, args, "lr", "prior_guidance")
    flags.check_share(parser, args, "drop")
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.nn import functional as F

from datasets.repetitions import averages, repetitions, shuffled_images
from models.captioner import Captioner
from models.clip_targets import image_targets, vision_token_targets
from models.prior import CaptionAdapter, DiffusionPrior, components_of
from stages import clip_runs, retrieval
from stages.captions import caption_measures
from stages.runs import LAST, best_epoch, finish_run, keep_epochs, open_run, save_history, validation_line
from stages.scores import measured
from utils.checkpoints import as_bytes, fingerprint, read_checkpoint, save_checkpoint
from utils.device import pick_device
from utils.files import write_json, write_jsonl
from utils.hub import model_identity
from utils.progress import progress
from utils.seeds import sample_seed, seed_everything


def learning_rate(args: argparse.Namespace, step: int, n_steps: int) -> float:
    """Of a step, counted from 0: linear up, then a cosine to 0."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - args.warmup) / max(1, n_steps - args.warmup))))


def sampled(args, model: DiffusionPrior, embeddings: torch.Tensor, groups, device, sample: int = 0) -> torch.Tensor:
    """(N, D) of the prior, trial by trial from seeds of its own."""
    found = []
    for start in range(0, len(groups), 256):
        seeds = [sample_seed(args.seed, group.first, sample) for group in groups[start : start + 256]]
        part = embeddings[start : start + 256].to(device)
        found.append(model.sample(part, seeds, args.prior_steps, args.prior_guidance).cpu())
    return torch.cat(found)


def main(args: argparse.Namespace) -> None:
    output_dir, device = Path(args.output_dir), pick_device(args.cuda)
    files = (f"{args.what}_epoch{{}}.pth",)

    # ------------------------------------------------------------ embeddings of all splits, by the trained encoder
    embeddings, groups, datasets = {}, {}, {}
    for split in ("train", "val", "test"):
        run = clip_runs.open_run(
            Path(args.model_dir), args.datasets_dir, split, args.foundation_dir, args.cache_dir, device
        )
        if run.checkpoint["target"] not in ("image", "structure"):
            raise UserError(
                f"{args.model_dir} was trained towards {run.checkpoint['target']}; a prior needs --target image or structure"
            )
        if args.shuffle_labels:
            run.dataset.trials, run.dataset.labels = shuffled_images(
                run.dataset.trials, run.dataset.labels, args.seed, split == "test"
            )
        datasets[split] = run.dataset
        groups[split] = averages(run.dataset, args.average_train) if split == "train" else repetitions(run.dataset)
        embeddings[split] = clip_runs.clip_part(run, groups[split], device)
    if not groups["train"]:
        raise UserError(f"{args.datasets_dir} has no training trials under {run.checkpoint['protocol']}")
    encoder, description = fingerprint(run.model), run.description
    protocol = run.checkpoint["protocol"]
    clip_model, control = run.checkpoint["clip_model"], run.checkpoint["shuffled"] or args.shuffle_labels
    del run

    # ------------------------------------------------------------ targets, image by image
    cache_dir = cache_folder(args.cache_dir, datasets["train"].store.path)
    images = sorted({group.image for of in groups.values() for group in of})
    paths = retrieval.image_paths(images, Path(args.images_dir))
    vectors = dict(zip(images, image_targets(clip_model, paths, cache_dir), strict=True))
    if args.what == "prior":
        target_of = vectors
    else:
        captioner = Captioner(args.captioner, device, flag="--captioner")
        target_of = vision_token_targets(captioner, images, paths, cache_dir)
    width = embeddings["train"].shape[1]

    # ------------------------------------------------------------ model
    seed_everything(args.seed)
    if args.what == "prior":
        trained_on = torch.stack([target_of[i] for i in sorted({g.image for g in groups["train"]})])
        settings = {"dim": trained_on.shape[1], "condition_dim": width,
                    "components": components_of(trained_on) if args.standardise == "components" else None}  # fmt: skip
        model = DiffusionPrior(**settings)
        model.standardise_by(trained_on)
    else:
        n_tokens, token_width = target_of[images[0]].shape
        settings = {"dim": width, "n_tokens": n_tokens, "width": token_width}
        model = CaptionAdapter(**settings)
    model.to(device)
    digest = hashlib.sha256()
    for image in images:
        digest.update(as_bytes(vectors[image]))
    depends_on = {
        "set of images": digest.hexdigest(),
        "encoder": encoder,
        "store": datasets["train"].store.fingerprint,
        "CLIP": model_identity(clip_model),
    }
    if args.what == "caption":
        depends_on["captioner"] = model_identity(args.captioner)
    record, state = open_run(
        output_dir, vars(args), {"images_dir", "output_dir", "model_dir"}, depends_on, files[0].format("*")
    )
    record["arguments"]["shuffle_labels"] = control  # so that evaluate.py knows what stands beside a run
    print(
        f"{description.name}, {args.what}: {' / '.join(str(len(of)) for of in groups.values())} train / val / test items, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; {device}"
    )
    kind = getattr(torch.optim, RECIPES[args.what].optimizer)
    optimizer = kind(model.parameters(), lr=args.lr)
    if state:
        with loading(*LAST):
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
    else:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(record, output_dir / "run.json")

    # ------------------------------------------------------------ training
    facts = {
        "what": args.what, "settings": settings, "dataset": description.name, "encoder": encoder, "clip": depends_on["CLIP"],
        "captioner": depends_on.get("captioner", ""), "shuffled": control, "seed": args.seed,
    }  # fmt: skip
    history, n = state.get("history", []), len(groups["train"])
    of_epoch = -(-n // args.batch_size)
    if history:
        keep_epochs(output_dir, history, args.keep, "cosine", files)
    for number in range(len(history) + 1, -(-args.epochs // args.validate_every) + 1):
        started, losses = time.perf_counter(), []
        first, last = (number - 1) * args.validate_every, min(args.epochs, number * args.validate_every)
        model.train()
        for epoch in progress(range(first, last), desc=f"epochs {first + 1} to {last} of {args.epochs}", leave=False):
            seed_everything(args.seed, epoch + 1)  # a resumed run repeats what the interrupted one would have done
            order = torch.randperm(n, generator=torch.Generator().manual_seed(args.seed * 100_003 + epoch))
            for step, chosen in enumerate(order.split(args.batch_size)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(args, epoch * of_epoch + step, args.epochs * of_epoch)
                x = embeddings["train"][chosen].to(device)
                y = torch.stack([target_of[groups["train"][k].image] for k in chosen.tolist()]).float().to(device)
                loss = model.loss(y, x, args.drop) if args.what == "prior" else F.mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                if RECIPES[args.what].clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPES[args.what].clip)
                optimizer.step()
                losses.append(float(loss.detach()))
        if not all(map(math.isfinite, losses)):
            raise UserError(f"the loss of epoch {last} is not finite; lower --lr")
        cosines = look(args, model, embeddings["val"], groups["val"], target_of, device)
        val = {"cosine": measured("cosine", cosines).as_dict()} if cosines else {}
        history.append(
            {"epoch": number, "phase": "joint", "train_loss": sum(losses) / len(losses), "passes": last, "val": val}
        )
        weights = {"model": model.state_dict()}
        save_checkpoint(facts | {"epoch": number} | weights, output_dir / files[0].format(number))
        save_history(history, {"seconds": time.perf_counter() - started}, None, output_dir)
        save_checkpoint({"history": history, "optimizer": optimizer.state_dict()} | weights, output_dir / "last.pth")
        keep_epochs(output_dir, history, args.keep, "cosine", files)
        print(f"epoch {last}: loss {history[-1]['train_loss']:.4f}, validation {validation_line(val)}")

    # ------------------------------------------------------------ the best epoch, reloaded from disk, on the test trials, once
    best = best_epoch(history, "cosine")
    model.load_state_dict(read_checkpoint(output_dir / files[0].format(best["epoch"]))["model"])
    test, candidates = groups["test"], sorted({group.image for group in groups["test"]})
    rows, measures = [], {}
    if test and args.what == "prior":
        samples = torch.stack([sampled(args, model, embeddings["test"], test, device, k) for k in range(args.samples)])
        targets = torch.stack([vectors[image] for image in candidates])
        rows = retrieval.retrieval_rows(datasets["test"], test, embeddings["test"], targets, candidates)
        for row, after in zip(
            rows,
            retrieval.retrieval_rows(datasets["test"], test, samples[0], targets, candidates, "prior"),
            strict=True,
        ):
            row.readouts |= after.readouts
        own = torch.stack([vectors[group.image] for group in test]).float()
        measures["cosine before"] = measured("cosine", F.cosine_similarity(embeddings["test"], own).tolist())
        measures["cosine after"] = measured("cosine", F.cosine_similarity(samples[0], own).tolist())
        if args.samples > 1:
            mean = F.normalize(samples, dim=-1).mean(dim=0)  # (N, D): as long as the samples agree
            alike = (args.samples * mean.norm(dim=-1) ** 2 - 1) / (args.samples - 1)  # mean cosine of two samples
            measures["cosine of two samples"] = measured("cosine", alike.tolist())
    elif test:
        measures["cosine"] = measured("cosine", look(args, model, embeddings["test"], test, target_of, device))
        with torch.no_grad():
            tokens = [model(part.to(device)).cpu() for part in embeddings["test"].split(32)]
        decoded = [caption for part in tokens for caption in captioner.from_tokens(part)]
        true = [
            captioner.from_tokens(target_of[group.image][None])[0]
            for group in progress(test, desc="captions", leave=False)
        ]
        lines = [
            {"image": g.image, "subject": g.subject, "caption": d, "of_the_image": t}
            for g, d, t in zip(test, decoded, true, strict=True)
        ]
        write_jsonl(lines, output_dir / "captions.jsonl")
        measures |= caption_measures(decoded, true, [group.image for group in test])
    finish_run(output_dir, rows, best, "cosine", control, measures)
    for row in rows and retrieval.score_lines(args.what, rows):
        print(
            f"  {row['read-out']:10} {row['person']:10} top-1 {100 * row['top-1']:.1f} %, top-5 {100 * row['top-5']:.1f} % of {row['candidates']}, n = {row['n']}"
        )
    if caution := description.caution_for(protocol):
        print(caution)


@torch.no_grad()
def look(args, model, embeddings: torch.Tensor, groups, target_of, device) -> list[float]:
    """Cosine of each group's output to its image's target; of tokens, their mean."""
    if not groups:
        return []
    model.eval()
    if args.what == "prior":
        own = torch.stack([target_of[group.image] for group in groups]).float()
        return F.cosine_similarity(sampled(args, model, embeddings, groups, device), own).tolist()
    found = []
    for k, group in enumerate(groups):
        out = model(embeddings[k : k + 1].to(device))[0].cpu()
        found.append(float(F.cosine_similarity(out, target_of[group.image].float(), dim=-1).mean()))
    return found


if __name__ == "__main__":
    run_script(
        lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume"
    )  # fmt: skip

"""Embeddings of EEG → embeddings of images (a diffusion prior), or → the tokens that a captioner sees.

    python train_prior.py --what prior --model_dir pth_downtasks/things/atm_sub-08 \
        --images_dir data/THINGS/images --output_dir pth_downtasks/things/prior_sub-08
    python train_prior.py --what caption --captioner microsoft/git-large-coco --model_dir … --output_dir …
    python train_prior.py … --shuffle_labels                        # the control: images change places; --resume: go on
    accelerate launch --multi_gpu --num_processes 2 train_prior.py …      # --cuda -1 behind it: CPU processes

--model_dir is a run of finetune_eeg_to_clip.py with --target image (or structure); a prior of a control is a control
itself. Both are trained on the run's training trials and chosen by the cosine on its validation trials; the test is
looked at once. prior, test: rows with two read-outs, retrieval by the EEG's embedding and by the prior's; the cosine of
both to the image's own embedding, and how far a trial's samples lie from each other. caption, test: captions.jsonl,
decoded and of the true image. Leaves in --output_dir: NAME_epochN.pth, metrics.jsonl, learning_curve.png, run.json,
results.json, decoded_test.jsonl; README.md (the model card) and model.safetensors with config.json (the best epoch).
"""

import argparse
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from datasets.splits import print_caution
from utils import flags
from utils.errors import UserError, loading
from utils.paths import cache_folder, default
from utils.script import run_script, start_script


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
    # fmt: off
    add = parser.add_argument
    add("--what", choices=list(RECIPES), default="prior",
        help="prior: to CLIP embeddings; caption: to a captioner's tokens")
    add("--model_dir", required=True,
        help="run of finetune_eeg_to_clip.py, an encoder_epochN.pth in it, or OWNER/NAME on the hub")
    flags.add_seen_images_flags(parser)
    add("--output_dir", default=default("pth_downtasks/prior"), help="folder for checkpoints, metrics and results")
    add("--captioner", default="microsoft/git-large-coco",
        help="caption: GIT, local folder or hub address; its tokens of 16,740 images take 8.8 GB in --cache_dir")
    train = parser.add_argument_group("training").add_argument
    train("--epochs", type=flags.at_least(1), help="epochs (default: as published, 150 and 30)")
    train("--batch_size", type=flags.at_least(1),
        help="trials an optimiser step, of each process (default: as published, 1024 and 32)")
    train("--lr", type=flags.number, help="learning rate, cosine to 0 (default: as published, 1e-3)")
    train("--warmup", type=flags.at_least(0),
        help="steps before the full learning rate (default: as published, 500 and 0)")
    train("--drop", type=flags.share, default=0.1,
        help="prior: share of trials that lose their condition, for guidance")
    train("--standardise", choices=("dimensions", "components"), default="dimensions",
        help="prior: each dimension of the targets; or their principal components, where few images or a small CLIP "
        "fill few dimensions")
    train("--average_train", type=flags.at_least(1), default=1,
        help="repetitions that are averaged for a training trial")
    train("--validate_every", type=flags.at_least(1), default=1,
        help="epochs from one validation and checkpoint to the next")
    train("--shuffle_labels", action="store_true", help="images change places: the control of this step alone")
    sampling = parser.add_argument_group("prior: sampling").add_argument
    flags.add_prior_flags(sampling)
    sampling("--samples", type=flags.at_least(1), default=4, help="of a test trial, for their spread")
    flags.add_resume_flags(parser)
    # fmt: on
    args = parser.parse_args()
    for name in ("epochs", "batch_size", "lr", "warmup"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(RECIPES[args.what], name))
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from torch.nn import functional as F

from datasets.repetitions import averages, repetitions, with_shuffled_images
from models import choose
from models.captioner import Captioner
from models.clip_targets import image_paths, vision_token_targets
from models.prior import CaptionAdapter, DiffusionPrior, components_of
from stages import TARGETS, retrieval
from stages.clip_features import identity, image_vectors
from stages.clip_runs import clip_part, open_clip_run
from stages.runs import LAST, Run
from stages.scores import caption_measures, measured
from utils.checkpoints import as_bytes, fingerprint, read_checkpoint
from utils.device import end_processes, start_accelerator
from utils.files import write_jsonl
from utils.hub import model_identity
from utils.processes import gathered, mean_over, part, share
from utils.progress import progress
from utils.seeds import sample_seed, seed_everything


def learning_rate(args: argparse.Namespace, step: int, n_steps: int) -> float:
    """Of a step, counted from 0: linear up, then a cosine to 0."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - args.warmup) / max(1, n_steps - args.warmup))))


# ---------------------------------------------------------------- what --what chooses


class Prior:
    """Embedding of EEG → embedding of the image: targets, model, loss of a batch, cosines, the test's rows and
    measures.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device, self.depends_on = args, device, {}

    def build(
        self, images: list[str], paths: list[Path], vectors: dict, cache_dir: Path, trained_on: list[str], width: int
    ) -> None:
        """vectors : {image: CLIP embedding}. trained_on : the training trials' images. width : of EEG's embeddings."""
        self.target_of, args = vectors, self.args
        of_training = torch.stack([vectors[image] for image in trained_on])
        components = components_of(of_training) if args.standardise == "components" else None
        self.settings = {"dim": of_training.shape[1], "condition_dim": width, "components": components}
        seed_everything(args.seed)
        self.model = DiffusionPrior(**self.settings)
        self.model.standardise_by(of_training)
        self.model.to(self.device)

    def loss(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """model : what is trained, or what DDP made of it."""
        return model(y, x, self.args.drop)

    def sampled(self, embeddings: torch.Tensor, groups, sample: int = 0) -> torch.Tensor:
        """(N, D) of the prior, trial by trial from seeds of its own."""
        found = []
        for start in range(0, len(groups), 256):
            seeds = [sample_seed(self.args.seed, group.first, sample) for group in groups[start : start + 256]]
            part = embeddings[start : start + 256].to(self.device)
            found.append(self.model.sample(part, seeds, self.args.prior_steps, self.args.prior_guidance).cpu())
        return torch.cat(found)

    def cosines(self, embeddings: torch.Tensor, groups) -> list[float]:
        """Of each group's sample to its image's embedding."""
        own = torch.stack([self.target_of[group.image] for group in groups]).float()
        return F.cosine_similarity(self.sampled(embeddings, groups), own).tolist()

    def test(self, embeddings: torch.Tensor, groups, dataset) -> tuple[list, dict]:
        """Rows with two read-outs, retrieval by the EEG's embedding and by the prior's; what the prior adds, as
        cosines.
        """
        samples = torch.stack([self.sampled(embeddings, groups, k) for k in range(self.args.samples)])  # (S, N, D)
        candidates = sorted({group.image for group in groups})
        ranked_by, targets = (
            torch.stack([of[image] for image in candidates]) for of in (self.ranked_by, self.target_of)
        )
        rows = retrieval.retrieval_rows(dataset, groups, embeddings, ranked_by, candidates)
        after = retrieval.retrieval_rows(dataset, groups, samples[0], targets, candidates, "prior")
        for row, other in zip(rows, after, strict=True):
            row.readouts |= other.readouts
        own = torch.stack([self.target_of[group.image] for group in groups]).float()
        measures = {
            "cosine before": measured("cosine", F.cosine_similarity(embeddings, own).tolist()),
            "cosine after": measured("cosine", F.cosine_similarity(samples[0], own).tolist()),
        }
        if (n := self.args.samples) > 1:
            mean = F.normalize(samples, dim=-1).mean(dim=0)  # (N, D): as long as the samples agree
            alike = (n * mean.norm(dim=-1) ** 2 - 1) / (n - 1)  # mean cosine of two samples
            measures["cosine of two samples"] = measured("cosine", alike.tolist())
        return rows, measures


class Caption(Prior):
    """Embedding of EEG → the tokens that a captioner sees of the image."""

    def build(
        self, images: list[str], paths: list[Path], vectors: dict, cache_dir: Path, trained_on: list[str], width: int
    ) -> None:
        self.captioner = Captioner(self.args.captioner, self.device, flag="--captioner")
        self.depends_on = {"captioner": model_identity(self.args.captioner)}
        self.target_of = vision_token_targets(self.captioner, images, paths, cache_dir)
        n_tokens, token_width = self.target_of[images[0]].shape
        self.settings = {"dim": width, "n_tokens": n_tokens, "width": token_width}
        seed_everything(self.args.seed)
        self.model = CaptionAdapter(**self.settings).to(self.device)

    def loss(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(model(x), y)

    @torch.no_grad()
    def cosines(self, embeddings: torch.Tensor, groups) -> list[float]:
        """Of each group's tokens to its image's, their mean."""
        self.model.eval()
        outputs = (self.model(embeddings[k : k + 1].to(self.device))[0].cpu() for k in range(len(groups)))
        targets = (self.target_of[group.image].float() for group in groups)
        return [float(F.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(outputs, targets, strict=True)]

    @torch.no_grad()
    def test(self, embeddings: torch.Tensor, groups, dataset) -> tuple[list, dict]:
        """No rows; the words that decoded captions share with the image's own. Writes captions.jsonl."""
        measures = {"cosine": measured("cosine", self.cosines(embeddings, groups))}
        tokens = [self.model(part.to(self.device)).cpu() for part in embeddings.split(32)]
        decoded = [caption for part in tokens for caption in self.captioner.from_tokens(part)]
        bar = progress(groups, desc="captions", leave=False)
        true = [self.captioner.from_tokens(self.target_of[group.image][None])[0] for group in bar]
        lines = [
            {"image": g.image, "subject": g.subject, "caption": d, "of_the_image": t}
            for g, d, t in zip(groups, decoded, true, strict=True)
        ]
        write_jsonl(lines, Path(self.args.output_dir) / "captions.jsonl")
        return [], measures | caption_measures(decoded, true, [group.image for group in groups])


def main(args: argparse.Namespace) -> None:
    accelerator, _ = start_accelerator(args.cuda, "fp32", 1, args.seed)
    device, turn = accelerator.device, (accelerator.process_index, accelerator.num_processes)

    # ------------------------------------------------------------ embeddings of all splits, by the trained encoder
    embeddings, groups, datasets = {}, {}, {}
    for split in ("train", "val", "test"):
        clip = open_clip_run(
            Path(args.model_dir), args.datasets_dir, split, args.foundation_dir, args.cache_dir, device
        )
        if not choose(TARGETS, clip.checkpoint["target"]).in_clip_space:
            was = clip.checkpoint["target"]
            raise UserError(f"{args.model_dir} was trained towards {was}; a prior needs --target image or structure")
        if args.shuffle_labels:
            clip.dataset = with_shuffled_images(clip.dataset, args.seed)
        datasets[split] = clip.dataset
        groups[split] = averages(clip.dataset, args.average_train) if split == "train" else repetitions(clip.dataset)
        own = clip_part(clip, share(accelerator, groups[split]), device)
        embeddings[split] = gathered(accelerator, own)[: len(groups[split])]  # (N, D)
    checkpoint, description, encoder = clip.checkpoint, clip.description, fingerprint(clip.model)
    protocol, clip_model, features = (checkpoint.get(name) for name in ("protocol", "clip_model", "clip_features"))
    control = checkpoint["shuffled"] or args.shuffle_labels
    if not groups["train"]:
        raise UserError(f"{args.datasets_dir} has no training trials under {protocol}")
    del clip

    # ------------------------------------------------------------ targets, image by image; model
    cache_dir = cache_folder(args.cache_dir, datasets["train"].store.path)
    images = sorted({group.image for of in groups.values() for group in of})
    args.images_dir = args.images_dir or datasets["train"].description.images_dir or default("data/THINGS/images")
    paths = image_paths(images, Path(args.images_dir))
    how = datasets["train"].store, Path(args.images_dir), clip_model, cache_dir, features
    blur = checkpoint.get("blur")
    trained = {"prior": Prior, "caption": Caption}[args.what](args, device)
    trained_on = sorted({group.image for group in groups["train"]})
    with accelerator.main_process_first():  # the others read what it keeps
        vectors = dict(zip(images, image_vectors(images, *how), strict=True))  # sharp, as IP-Adapter reads them
        trained.build(images, paths, vectors, cache_dir, trained_on, embeddings["train"].shape[1])
        trained.ranked_by = dict(zip(images, image_vectors(images, *how, blur), strict=True)) if blur else vectors
    digest = hashlib.sha256(b"".join(as_bytes(vectors[image]) for image in images)).hexdigest()
    depends_on = {"set of images": digest, "encoder": encoder, "store": datasets["train"].store.fingerprint}
    depends_on |= {"CLIP": identity(clip_model, features)} | trained.depends_on
    run = Run(Path(args.output_dir), [f"{args.what}_epoch{{}}.pth"], "cosine", args.keep, turn)
    run.open(vars(args), {"images_dir", "output_dir", "model_dir"}, depends_on)
    run.record["arguments"]["shuffle_labels"] = control  # so that evaluate.py knows what stands beside a run
    print(
        f"{description.name}, {args.what}: {' / '.join(str(len(of)) for of in groups.values())} train / val / test "
        f"items, {sum(p.numel() for p in trained.model.parameters()):,} parameters; "
        f"{accelerator.num_processes} process(es) on {device}"
    )
    recipe, model = RECIPES[args.what], trained.model
    optimizer = getattr(torch.optim, recipe.optimizer)(model.parameters(), lr=args.lr)
    if run.state:
        with loading(*LAST):
            model.load_state_dict(run.state["model"])
            optimizer.load_state_dict(run.state["optimizer"])
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    run.begin(datasets, protocol)
    model = accelerator.prepare(model)

    # ------------------------------------------------------------ training
    facts = {
        "what": args.what, "settings": trained.settings, "dataset": description.name, "encoder": encoder,
        "clip": depends_on["CLIP"], "captioner": depends_on.get("captioner", ""), "shuffled": control,
        "seed": args.seed,
    }  # fmt: skip
    n, whole = len(groups["train"]), args.batch_size * accelerator.num_processes  # a batch of all processes
    of_epoch, own = -(-n // whole), share(accelerator, range(len(groups["val"])))
    for number in run.epochs(-(-args.epochs // args.validate_every)):
        losses, first = [], (number - 1) * args.validate_every
        last = min(args.epochs, number * args.validate_every)
        model.train()
        name = f"epochs {first + 1} to {last} of {args.epochs}"
        for epoch in progress(range(first, last), desc=name, leave=False, disable=not run.writes):
            # a resumed run repeats what the interrupted one would have done
            seed_everything(args.seed, epoch + 1, accelerator.process_index)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(args.seed * 100_003 + epoch))
            for step, batch in enumerate(order.split(whole)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(args, epoch * of_epoch + step, args.epochs * of_epoch)
                chosen, weight = part(accelerator, batch)
                y = torch.stack([trained.target_of[groups["train"][k].image] for k in chosen.tolist()]).float()
                loss = weight * trained.loss(model, embeddings["train"][chosen].to(device), y.to(device))
                optimizer.zero_grad()
                loss.backward()
                if recipe.clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
                losses.append(float(loss.detach()))
        loss = mean_over(accelerator, sum(losses) / len(losses))
        run.trained(loss)
        cosines = torch.tensor(trained.cosines(embeddings["val"][own], [groups["val"][k] for k in own]) if own else [])
        cosines = gathered(accelerator, cosines)[: len(groups["val"])].tolist()
        scores = {"cosine": measured("cosine", cosines)} if cosines else {}
        weights = {"model": trained.model.state_dict()}
        state = {"optimizer": optimizer.state_dict()} | weights
        print(run.save_epoch(loss, scores, [facts | weights], state, passes=last))
        accelerator.wait_for_everyone()

    # ------------------------------------------------------------ test: the best epoch, reloaded from disk
    model, rows, measures = trained.model, [], {}
    model.load_state_dict(read_checkpoint(run.best_file())["model"])
    if groups["test"] and run.writes:
        rows, measures = trained.test(embeddings["test"], groups["test"], datasets["test"])
    run.finish(rows, control, measures)
    for row in rows and retrieval.score_lines(args.what, rows):
        top = f"top-1 {100 * row['top-1']:.1f} %, top-5 {100 * row['top-5']:.1f} % of {row['candidates']}"
        print(f"  {row['read-out']:10} {row['person']:10} {top}, n = {row['n']}")
    print_caution(description, protocol)
    end_processes(accelerator)


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume")

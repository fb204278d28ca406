"""SGDM's two models of pictures: a VAE that is told their structure, and a ControlNet that draws along it.

    python train_structure.py --what vae --datasets_dir data/THINGS/processed_lmdb --images_dir data/THINGS/images \
        --setting within --subject sub-08 --output_dir pth_downtasks/things/vae
    python train_structure.py --what controlnet --image_model stable-diffusion-v1-5/stable-diffusion-v1-5 …
    python train_structure.py … --resume                            # go on
    accelerate launch --multi_gpu --num_processes 2 train_structure.py …         # --cuda -1 behind it: CPU processes

Both are trained on the images of the training trials alone, and chosen on those of the validation trials: the VAE by
the correlation of its maps with the maps of edges, the ControlNet by the share of the noise that it explains. The EEG
encoder comes between the two: finetune_eeg_to_clip.py --target structure --encoder sgdm. A published ControlNet
(lllyasviel/sd-controlnet-scribble) needs no training. Leaves in --output_dir: vae_epochN.pth or controlnet_epochN/ (the
hub's layout), metrics.jsonl, learning_curve.png, run.json, results.json, README.md (the model card); of the VAE
model.safetensors with config.json (the best epoch).
"""

import argparse
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

from datasets.description import of_images, one_of
from datasets.splits import PROTOCOLS, check_protocol
from utils import flags
from utils.errors import UserError, loading
from utils.paths import cache_folder, default
from utils.script import run_script, start_script

# what is trained → epochs, batch size, learning rate: the description's for the VAE, settled for the ControlNet
RECIPES = {"vae": (100, 32, 1e-4), "controlnet": (10, 4, 1e-5)}
FILES = {"vae": "vae_epoch{}.pth", "controlnet": "controlnet_epoch{}"}


def parse_args() -> argparse.Namespace:
    parser = flags.new_parser(__doc__)
    # fmt: off
    add = parser.add_argument
    add("--what", choices=list(RECIPES), default="vae", help="which model")
    flags.add_dataset_flags(parser, one_of(of_images()), "which dataset of seen images")
    add("--datasets_dir", default=default("data/THINGS/processed_lmdb"),
        help="trial store: it says which images are trained on")
    add("--images_dir", default=default("data/THINGS/images"), help="folder of the images that were seen")
    add("--output_dir", default=default("pth_downtasks/structure"), help="folder for checkpoints, metrics and results")
    add("--cache_dir", help="folder of cached latents (default: token_cache beside --datasets_dir)")
    flags.add_protocol_flags(parser, PROTOCOLS, check_protocol, "joint")
    vae = parser.add_argument_group("vae").add_argument
    vae("--widths", nargs=3, type=flags.at_least(1), default=[64, 128, 256], help="channels of its three convolutions")
    vae("--hidden", type=flags.at_least(1), default=1024, help="width between convolutions and latent")
    vae("--map_share", type=flags.number, default=0.1, help="of the map's cross-entropy in the loss")
    net = parser.add_argument_group("controlnet").add_argument
    net("--image_model", default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        help="which model it is for: local folder or hub address")
    net("--optimizer", choices=("adamw", "adamw8bit"), default="adamw",
        help="adamw8bit: bitsandbytes', a GPU; a quarter of the memory")
    train = parser.add_argument_group("training").add_argument
    train("--epochs", type=flags.at_least(1), help="passes over the training images (default: 100, of controlnet 10)")
    train("--batch_size", type=flags.at_least(1),
        help="images an optimiser step, of each process (default: 32, of controlnet 4)")
    train("--lr", type=flags.number, help="learning rate of AdamW (default: 1e-4, of controlnet 1e-5)")
    flags.add_resume_flags(parser)
    # fmt: on
    args = parser.parse_args()
    for name, value in zip(("epochs", "batch_size", "lr"), RECIPES[args.what], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    flags.choose_protocol(parser, args, PROTOCOLS, "joint")
    args.defaults = flags.defaults(parser, args)
    return args


if __name__ == "__main__":
    args = start_script(parse_args)  # before the slow imports: -h and a wrong flag answer at once

import torch
from accelerate import Accelerator
from diffusers import ControlNetModel, DDPMScheduler
from torch.nn import functional as F

from datasets.store import description_of_store
from datasets.trials import load_splits
from models.clip_targets import digests_of, image_paths, read_image, vae_latent_targets
from models.image_generator import load_image_model
from models.loading import load_whole
from models.structure import StructuralVAE, as_pixels, structure_map, vae_loss
from stages import retrieval
from stages.checkpoints import read_vae
from stages.runs import LAST, Run
from stages.scores import measured
from stages.targets import decoded_maps, images_of, map_measures, missing_photos, without_lacking
from utils.device import end_processes, start_accelerator
from utils.files import write_json
from utils.hub import model_identity
from utils.processes import gathered, mean_over, part, share
from utils.progress import progress
from utils.seeds import seed_everything


class VAE:
    """What is trained by --what vae: loss of a batch of images, validation, file."""

    choose_by = "map"

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, paths: list[Path], cache_dir: Path):
        self.args, self.accelerator, self.device, self.depends_on = args, accelerator, accelerator.device, {}
        self.settings = {"widths": args.widths, "hidden": args.hidden}
        self.model = StructuralVAE(**self.settings).to(self.device)
        self.pictures: dict[Path, tuple[torch.Tensor, torch.Tensor]] = {}  # as bytes: 64 kB an image

    def read(self, paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, 128, 128) pictures and (B, 1, 128, 128) maps; each is made once."""
        for path in paths:
            if path not in self.pictures:
                picture = read_image(path)
                made = as_pixels([picture])[0], torch.from_numpy(structure_map(picture))[None]
                self.pictures[path] = tuple((x * 255).round().byte() for x in made)
        return tuple(torch.stack([self.pictures[p][k] for p in paths]).float().to(self.device) / 255 for k in (0, 1))

    def loss(self, model: torch.nn.Module, paths: list[Path]) -> torch.Tensor:
        """model : what is trained, or what DDP made of it."""
        x, maps = self.read(paths)
        return vae_loss(x, maps, model(x), self.args.map_share)[0]

    @torch.no_grad()
    def validate(self, paths: list[Path]) -> dict:
        """Correlation of the maps that the latents' means give with the maps of edges; of restored pictures with the
        pictures.
        """
        maps, pictures, own = [], [], share(self.accelerator, paths)
        for start in range(0, len(own), 64):
            x, _ = self.read(own[start : start + 64])
            mean = self.model.encode(x)[0]
            maps.append(decoded_maps(self.model, mean))
            pictures.append(retrieval.correlation(self.model.decoder(mean).flatten(1), x.flatten(1)).cpu())
        maps, pictures = (gathered(self.accelerator, torch.cat(of))[: len(paths)] for of in (maps, pictures))
        return map_measures(maps, paths) | {"picture": measured("correlation", pictures.tolist())}

    def file(self, facts: dict) -> dict:
        """What an epoch's checkpoint holds."""
        return facts | {"settings": self.settings, "model": self.model.state_dict()}

    def load(self, path: Path) -> None:
        self.model = read_vae(path)[0].to(self.device)


class Control:
    """What is trained by --what controlnet: a copy of the image model's encoder that reads maps; the model itself stays
    as it is.
    """

    choose_by = "noise"

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, paths: list[Path], cache_dir: Path):
        self.accelerator, self.device, device = accelerator, accelerator.device, accelerator.device
        family = load_image_model(args.image_model)
        self.depends_on = {"image model": model_identity(args.image_model)}
        pipeline = family.pipeline
        with loading(f"--image_model {args.image_model}", "a ControlNet is trained for Stable Diffusion 1.x or 2.x"):
            if not family.controllable:
                raise ValueError(f"it is of the family {type(family).__name__}")
            with torch.no_grad():
                self.states = family.read_prompt("").states.to(device)  # (1, 77, D): maps alone are told
            self.unet = pipeline.unet.to(device).eval().requires_grad_(False)
            factor = int(math.log2(pipeline.vae_scale_factor))
            self.model = ControlNetModel.from_unet(
                pipeline.unet, conditioning_embedding_out_channels=(16, 32, 96, 256)[:factor] + (256,)
            ).to(device)
        if device.type == "cuda":
            self.model.enable_gradient_checkpointing()
        self.schedule, scale = DDPMScheduler.from_config(pipeline.scheduler.config), pipeline.vae_scale_factor
        self.predicts = self.schedule.config.prediction_type
        del pipeline, family
        latents = vae_latent_targets(args.image_model, paths, cache_dir, device)
        self.latent_of, self.edge = dict(zip(paths, latents, strict=True)), latents.shape[-1] * scale
        self.map_of: dict[Path, torch.Tensor] = {}

    def maps(self, paths: list[Path]) -> torch.Tensor:
        """(B, 3, edge, edge) maps of edges from 0 to 1."""
        for path in paths:
            if path not in self.map_of:
                self.map_of[path] = torch.from_numpy(structure_map(read_image(path)))[None]
        maps = torch.stack([self.map_of[path] for path in paths]).to(self.device)
        return F.interpolate(maps, (self.edge, self.edge), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)

    def errors(self, model: torch.nn.Module, paths: list[Path], noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """(B,) mean squared error of the noise; of the velocity, where the image model predicts that."""
        latents = torch.stack([self.latent_of[path] for path in paths]).float().to(self.device)
        noisy, states = self.schedule.add_noise(latents, noise, t), self.states.expand(len(paths), -1, -1)
        down, middle = model(noisy, t, states, self.maps(paths), return_dict=False)
        predicted = self.unet(
            noisy, t, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        target = self.schedule.get_velocity(latents, noise, t) if self.predicts == "v_prediction" else noise
        return (predicted - target).square().mean(dim=(1, 2, 3))

    def loss(self, model: torch.nn.Module, paths: list[Path]) -> torch.Tensor:
        noise = torch.randn(len(paths), *self.latent_of[paths[0]].shape, device=self.device)
        return self.errors(model, paths, noise, torch.randint(0, 1000, (len(paths),), device=self.device)).mean()

    @torch.no_grad()
    def validate(self, paths: list[Path]) -> dict:
        """Share of the noise that is explained, at noise and times that are the same in each epoch."""
        found = []
        for number in share(self.accelerator, range(len(paths))):
            generator, path = torch.Generator("cpu").manual_seed(number), paths[number]
            noise = torch.randn(1, *self.latent_of[path].shape, generator=generator).to(self.device)
            t = torch.randint(0, 1000, (1,), generator=generator).to(self.device)
            found.append(1 - self.errors(self.model, [path], noise, t).cpu())
        found = gathered(self.accelerator, torch.cat(found))[: len(paths)]
        return {"noise": measured("share explained", found.tolist())}

    def file(self, facts: dict) -> Callable[[Path], None]:
        """What writes an epoch's folder, in the hub's layout."""

        def write(folder: Path) -> None:
            self.model.save_pretrained(folder)
            write_json(facts, folder / "facts.json")

        return write

    def load(self, path: Path) -> None:
        self.model = load_whole(ControlNetModel, str(path), "--output_dir", "train again").to(self.device).eval()


def main(args: argparse.Namespace) -> None:
    accelerator, _ = start_accelerator(args.cuda, "fp32", 1, args.seed)

    # ------------------------------------------------------------ images: which are trained on, validate, are tested on
    description = description_of_store(args.datasets_dir, args.downstream_dataset, args.words, "THINGS")
    args.downstream_dataset = description.name
    splits = load_splits(args.datasets_dir, description, args.protocol)
    splits, *_ = without_lacking(splits, missing_photos(images_of(splits), Path(args.images_dir)))
    images = {mode: sorted({trial.image for trial in dataset.trials}) for mode, dataset in splits.items()}
    paths = {mode: image_paths(of, Path(args.images_dir)) for mode, of in images.items()}
    if shared := set(images["train"]) & set(images["test"]):
        raise UserError(f"under {args.protocol}, {sorted(shared)[0]} is in training and in test")
    cache_dir = cache_folder(args.cache_dir, splits["train"].store.path)

    # ------------------------------------------------------------ model
    seed_everything(args.seed)
    every = [path for of in paths.values() for path in of]
    with accelerator.main_process_first():  # the others read what it keeps
        trained = {"vae": VAE, "controlnet": Control}[args.what](args, accelerator, every, cache_dir)
    of_images = hashlib.sha256("".join(digests_of(every)).encode()).hexdigest()
    depends_on = {"store": splits["train"].store.fingerprint, "set of images": of_images} | trained.depends_on
    turn = accelerator.process_index, accelerator.num_processes
    run = Run(Path(args.output_dir), [FILES[args.what]], trained.choose_by, args.keep, turn)
    run.open(vars(args), {"images_dir", "output_dir"}, depends_on)
    if args.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as kind  # noqa: N813
    else:
        kind = torch.optim.AdamW
    optimizer = kind(trained.model.parameters(), lr=args.lr)
    if run.state:
        with loading(*LAST):
            trained.model.load_state_dict(run.state["model"])
            optimizer.load_state_dict(run.state["optimizer"])
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    run.begin(splits, args.protocol)
    model = accelerator.prepare(trained.model)
    n, whole = len(paths["train"]), args.batch_size * accelerator.num_processes  # a batch of all processes
    print(
        f"{args.what}: {' / '.join(str(len(of)) for of in images.values())} train / val / test images, "
        f"{sum(p.numel() for p in trained.model.parameters()):,} parameters; "
        f"{accelerator.num_processes} process(es) on {accelerator.device}"
    )

    # ------------------------------------------------------------ training
    facts = {
        "dataset": args.downstream_dataset,
        "protocol": args.protocol,
        "seed": args.seed,
        "seen": images["train"] + images["val"],
        "image_model": depends_on.get("image model", ""),
    }
    for epoch in run.epochs(args.epochs):
        # a resumed run repeats what the interrupted one would have done
        seed_everything(args.seed, epoch, accelerator.process_index)
        losses, order = [], torch.randperm(n, generator=torch.Generator().manual_seed(args.seed * 100_003 + epoch))
        model.train()
        name = f"epoch {epoch}/{args.epochs}"
        with progress(total=n, desc=name, unit="image", leave=False, disable=not run.writes) as bar:
            for batch in order.split(whole):
                chosen, weight = part(accelerator, batch)
                loss = weight * trained.loss(model, [paths["train"][k] for k in chosen.tolist()])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                bar.update(len(batch))
        loss = mean_over(accelerator, sum(losses) / len(losses))
        run.trained(loss)
        trained.model.eval()
        scores = trained.validate(paths["val"]) if paths["val"] else {}
        state = {"optimizer": optimizer.state_dict(), "model": trained.model.state_dict()}
        print(run.save_epoch(loss, scores, [trained.file(facts | {"epoch": epoch})], state, lr=args.lr))
        accelerator.wait_for_everyone()

    # ------------------------------------------------------------ the best epoch
    del model
    trained.load(run.best_file())
    run.finish([], False, trained.validate(paths["test"]) if paths["test"] else {})
    end_processes(accelerator)


if __name__ == "__main__":
    run_script(lambda: main(args), [Path(args.output_dir) / ".lock"], "finished epochs are kept; go on with --resume")

"""SGDM's VAE between the scripts: its checkpoint, its latents and maps of images, and whether it saw what it must not."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from models.clip_targets import digests_of, in_parts, read_image
from models.image_generator import image_model_address
from models.structure import StructuralVAE, as_pixels, structure_map
from stages.retrieval import correlation
from stages.scores import Measure, measured
from utils.checkpoints import best_checkpoint, fingerprint, must_be_finite, read_checkpoint
from utils.errors import UserError, loading
from utils.files import read_json
from utils.hub import model_identity

KINDS = {"settings": dict, "model": dict, "seen": list, "dataset": str}


def read_vae(place: Path) -> tuple[StructuralVAE, dict]:
    """The VAE of a run of train_structure.py, in evaluation mode, and its checkpoint; UserError where it is none, or damaged."""
    path = best_checkpoint(place, "vae_epoch{}.pth")
    checkpoint = read_checkpoint(path)
    wrong = [name for name, kind in KINDS.items() if not isinstance(checkpoint.get(name), kind)]
    if not wrong and not all(isinstance(image, str) for image in checkpoint["seen"]):
        wrong = ["seen"]
    if wrong:
        raise UserError(
            f"{path} is no checkpoint of train_structure.py --what vae (its {', '.join(wrong)}); name another one"
        )
    with loading(str(path), "name another checkpoint"):
        vae = StructuralVAE(**checkpoint["settings"])
        vae.load_state_dict(checkpoint["model"])
        must_be_finite(vae)
    return vae.eval().requires_grad_(False), checkpoint


def must_not_have_seen(checkpoint: dict, place: Path, images: Iterable[str]) -> None:
    """Raise UserError where a VAE or ControlNet was trained on an image that is to be tested on."""
    if seen := sorted(set(checkpoint["seen"]) & set(images)):
        raise UserError(
            f"{place} was trained on {seen[0]} and {len(seen) - 1} more of the test images; train it under this protocol"
        )


def check_controlnet(controlnet: str, image_model: str, candidates: Iterable[str]) -> None:
    """UserError where a ControlNet of train_structure.py has seen one of `candidates`, or was trained for another image model."""
    if (facts := Path(controlnet) / "facts.json").is_file():
        trained = read_json(facts)
        with loading(str(facts), "train the ControlNet again"):
            must_not_have_seen(trained, Path(controlnet), candidates)
            if trained["image_model"] != model_identity(image_model_address(image_model)):
                raise UserError(f"--controlnet {controlnet} was trained for another image model than {image_model}")


def structure_targets(vae: StructuralVAE, paths: Sequence[Path], cache_dir: Path) -> torch.Tensor:
    """(N, latent) float16 means of the VAE's latents of images, as they are."""

    @torch.inference_mode()
    def build(part: Sequence[Path]) -> torch.Tensor:
        return vae.encode(as_pixels([read_image(path) for path in part]))[0]

    return in_parts("structure", "the VAE", paths, digests_of(paths), cache_dir, build, identity=fingerprint(vae))


@torch.no_grad()
def decoded_maps(vae: StructuralVAE, latents: torch.Tensor) -> torch.Tensor:
    """(N, latent) → (N, 1, 128, 128) maps from 0 to 1."""
    device = next(vae.parameters()).device
    return torch.cat([vae.map_logits(part.float().to(device)).sigmoid().cpu() for part in latents.split(64)])


def map_measures(maps: torch.Tensor, paths: Sequence[Path]) -> dict[str, Measure]:
    """Correlation of each (1, 128, 128) map with its image's; and with another image's, since all images have their edges in the middle."""
    own = torch.stack([torch.from_numpy(structure_map(read_image(path))) for path in paths]).flatten(1)
    drawn = maps.flatten(1)
    found = {"map": measured("correlation", correlation(drawn, own).tolist())}
    # the next one: it is another image, but for the last of a person perhaps
    if apart := [k for k in range(len(paths)) if paths[k] != paths[k + 1 - len(paths)]]:
        others = own.roll(-1, dims=0)
        found["map, another image"] = measured("correlation", correlation(drawn[apart], others[apart]).tolist())
    return found

"""Checkpoints of train_prior.py brought back, for the encoder that they were trained with and no other."""

from pathlib import Path

from models.prior import CaptionAdapter, DiffusionPrior
from utils.checkpoints import best_checkpoint, must_be_finite, read_checkpoint
from utils.errors import UserError, loading
from utils.hub import model_identity

KINDS = {"what": str, "settings": dict, "model": dict, "encoder": str, "clip": str, "captioner": str, "shuffled": bool}


def read_prior(place: Path, encoder: str, clip: str | None, width: int) -> tuple[DiffusionPrior, bool]:
    """The prior of a run, and whether it is a shuffled-label control.

    encoder, clip : str. Fingerprint of the encoder whose embeddings go in, identity of the CLIP whose embeddings come out.
    width : int. Of both embeddings.
    Raises UserError if the file is damaged, or the prior is of another encoder or other targets.
    """
    path, checkpoint = _read(place, "prior", encoder, width)
    if clip and checkpoint["clip"] != clip:
        raise UserError(f"{path} was trained on the embeddings of another CLIP than the encoder")
    with loading(str(path), "name another checkpoint"):
        prior = DiffusionPrior(**checkpoint["settings"])
        prior.load_state_dict(checkpoint["model"])
        must_be_finite(prior)
        if checkpoint["settings"]["dim"] != width:
            raise ValueError(f"it gives embeddings of width {checkpoint['settings']['dim']}; expected {width}")
    return prior.eval(), checkpoint["shuffled"]


def read_adapter(place: Path, encoder: str, captioner: str, width: int) -> tuple[CaptionAdapter, bool]:
    """The caption adapter of a run, and whether it is a control; UserError as above, or where it is for another captioner."""
    path, checkpoint = _read(place, "caption", encoder, width)
    if checkpoint["captioner"] != model_identity(captioner):
        raise UserError(f"{path} was trained towards the tokens of another captioner than {captioner}")
    with loading(str(path), "name another checkpoint"):
        adapter = CaptionAdapter(**checkpoint["settings"])
        adapter.load_state_dict(checkpoint["model"])
        must_be_finite(adapter)
    return adapter.eval(), checkpoint["shuffled"]


def _read(place: Path, what: str, encoder: str, width: int) -> tuple[Path, dict]:
    path = best_checkpoint(place, f"{what}_epoch{{}}.pth")
    checkpoint = read_checkpoint(path)
    wrong = [name for name, kind in KINDS.items() if not isinstance(checkpoint.get(name), kind)]
    if wrong or checkpoint["what"] != what:
        raise UserError(
            f"{path} is no checkpoint of train_prior.py --what {what} (its {', '.join(wrong) or 'kind'}); name another one"
        )
    reads = checkpoint["settings"].get("condition_dim" if what == "prior" else "dim")
    if reads != width:
        raise UserError(f"{path} reads embeddings of width {reads}; the encoder gives {width}")
    if checkpoint["encoder"] != encoder:
        raise UserError(f"{path} was trained on the embeddings of another encoder; train it on this one")
    return path, checkpoint

"""EEG tokens → CLIP space: the Q-Former style mapper, its published baselines, its targets and its loss."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from models.eeg_llm import FEATURES
from utils.checkpoints import read_tensors
from utils.drawing import read_photo
from utils.errors import UserError
from utils.paths import written_whole

MAPPERS = ("qformer", "mlp", "linear")
TOKEN_POSITIONS = ("none", "learned")
QUERIES = 77  # CLIP's text length
WIDTH = 512  # inside the mapper


class EEGCLIPMapper(nn.Module):
    """(B, n, 200) EEG tokens → text states (B, 77, 768), pooled vector (B, 768), class logits (B, 10).

    Parameters
    ----------
    n_classes : int
    n_tokens : int
        EEG tokens a trial; only learned positions and the linear baseline depend on it.
    clip_width : int
        768 for CLIP ViT-L/14.
    mapper : {"qformer", "mlp", "linear"}
        "qformer" is the seed's: MLP, four transformer layers, 77 queries that attend to the tokens; 10,862,602
        parameters. "mlp" (published as "no Q-Former") averages the tokens after the MLP; "linear" (the published
        linear probe) has one linear layer an output. Both give every text position the pooled vector and a learned
        vector of its own.
    token_positions : {"none", "learned"}
        "none" is the seed's: the Q-Former's output is then the same for any order of its tokens. "learned" adds an
        embedding a token.
    dropout : float
    """

    def __init__(
        self, n_classes: int = 10, n_tokens: int = 20, clip_width: int = 768, mapper: str = "qformer",
        token_positions: str = "none", dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        if mapper not in MAPPERS or token_positions not in TOKEN_POSITIONS:
            raise ValueError(f"mapper {mapper!r}, token_positions {token_positions!r}")
        self.kind, self.n_tokens = mapper, n_tokens
        self.input_mlp = nn.Sequential(
            nn.Linear(FEATURES, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Dropout(dropout), nn.Linear(WIDTH, WIDTH)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(n_tokens, WIDTH)) if token_positions == "learned" else None
        if mapper == "qformer":
            layer = nn.TransformerEncoderLayer(
                WIDTH, nhead=8, dim_feedforward=2 * WIDTH, dropout=dropout, batch_first=True, norm_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
            self.queries = nn.Parameter(0.02 * torch.randn(QUERIES, WIDTH))
            self.attention = nn.MultiheadAttention(WIDTH, num_heads=8, dropout=dropout, batch_first=True)
            self.attention_norm = nn.LayerNorm(WIDTH)
            self.to_states = nn.Sequential(nn.Linear(WIDTH, clip_width), nn.LayerNorm(clip_width))
            self.to_pooled = nn.Sequential(nn.Linear(clip_width, clip_width), nn.Tanh())
            self.head = nn.Linear(clip_width, n_classes)
        else:
            self.text_positions = nn.Parameter(0.02 * torch.randn(QUERIES, clip_width))
            if mapper == "mlp":
                self.to_pooled = nn.Sequential(nn.Linear(WIDTH, clip_width), nn.Tanh())
                self.head = nn.Linear(clip_width, n_classes)
            else:
                self.input_mlp, self.positions = None, None
                self.to_pooled = nn.Linear(n_tokens * FEATURES, clip_width)
                self.head = nn.Linear(n_tokens * FEATURES, n_classes)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text states (B, 77, 768), pooled vector (B, 768), class logits (B, n_classes)."""
        if self.kind == "linear":
            flat = tokens.flatten(1)  # (B, n·200)
            pooled = self.to_pooled(flat)
            return pooled[:, None] + self.text_positions, pooled, self.head(flat)
        x = self.input_mlp(tokens)  # (B, n, 512)
        if self.positions is not None:
            x = x + self.positions
        if self.kind == "mlp":
            pooled = self.to_pooled(x.mean(dim=1))  # (B, 768)
            return pooled[:, None] + self.text_positions, pooled, self.head(pooled)
        x = self.encoder(x)  # (B, n, 512)
        queries = self.queries.expand(len(x), -1, -1)  # (B, 77, 512)
        attended, _ = self.attention(queries, x, x, need_weights=False)
        states = self.to_states(self.attention_norm(attended + queries))  # (B, 77, 768)
        pooled = self.to_pooled(states.mean(dim=1))  # (B, 768)
        return states, pooled, self.head(pooled)


def mapper_loss(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], label: torch.Tensor, prototypes: torch.Tensor,
    text_states: torch.Tensor, weights: Mapping[str, float], temperature: float, with_mse: bool,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """The seed's loss: λ_cls·CE + λ_contrastive·InfoNCE + λ_cos·(1 − cosine) + λ_mse·MSE, the last off in warm-up.

    Parameters
    ----------
    outputs : text states (B, 77, D), pooled vector (B, D), class logits (B, K)
    label : (B,) int64
    prototypes : (K, D)
        One target vector a class: CLIP embeddings of the photos (or of the prompts).
    text_states : (K, 77, D)
        The image model's own text states of the class prompts.
    weights : mapping with "cls", "contrastive", "cos", "mse"
    temperature : float
        τ of InfoNCE over the K prototypes.
    with_mse : bool

    Returns
    -------
    loss : scalar tensor
    parts : dict of name → unweighted scalar tensor
    """
    states, pooled, logits = (output.float() for output in outputs)
    cosines = F.normalize(pooled, dim=-1) @ F.normalize(prototypes, dim=-1).T  # (B, K)
    parts = {
        "cls": F.cross_entropy(logits, label),
        "contrastive": F.cross_entropy(cosines / temperature, label),
        "cos": (1 - cosines.gather(1, label[:, None])).mean(),
    }
    if with_mse:
        parts["mse"] = F.mse_loss(states, text_states[label])
    return sum(weights[name] * part for name, part in parts.items()), parts


@torch.no_grad()
def mapper_readouts(outputs: tuple[torch.Tensor, ...], prototypes: torch.Tensor) -> list[dict]:
    """Both read-outs of a batch, one dict a trial: the head's class and probabilities, the nearest prototype's class."""
    _, pooled, logits = (output.float() for output in outputs)
    nearest = (F.normalize(pooled, dim=-1) @ F.normalize(prototypes, dim=-1).T).argmax(dim=-1)  # (B,)
    probabilities = logits.softmax(dim=-1)  # (B, K)
    return [
        {"head_label": int(p.argmax()), "prototype_label": int(k), "probabilities": [round(v, 6) for v in p.tolist()]}
        for p, k in zip(probabilities.cpu(), nearest.cpu(), strict=True)
    ]


def mean_pairwise_cosine(vectors: torch.Tensor) -> float:
    """Of all pairs of rows of (K, D): how alike the targets of different classes are."""
    unit = F.normalize(vectors.float(), dim=-1)
    k = len(unit)
    return float(((unit @ unit.T).sum() - k) / (k * (k - 1)))


# ---------------------------------------------------------------- targets


class CLIPImageTargetBuilder:
    """Projected CLIP embeddings of the stimulus photos, (K, 768), built once and kept by model and photos.

    Parameters
    ----------
    name : str
        A folder laid out like `openai/clip-vit-large-patch14` (nothing is downloaded then), or a hub address.
    cache_dir : Path
    """

    def __init__(self, name: str, cache_dir: Path):
        self.name, self.cache_dir = name, Path(cache_dir)

    def build(self, photos: Sequence[Path]) -> torch.Tensor:
        """(K, 768) float32, in the order of the photos.

        Raises
        ------
        UserError
            If a photo is missing or no picture, or the model cannot be loaded.
        """
        pictures = [read_photo(path) for path in photos]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in photos]
        return _cached(self.cache_dir, "image", [*_identity(self.name), *digests], lambda: self._encode(pictures))["x"]

    @torch.inference_mode()
    def _encode(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        transformers.logging.set_verbosity_error()  # the text tower's weights are left out on purpose
        try:
            local = Path(self.name).is_dir()
            model = CLIPVisionModelWithProjection.from_pretrained(
                self.name, local_files_only=local, dtype=torch.float32
            ).eval()
            processor = CLIPImageProcessorPil.from_pretrained(self.name, local_files_only=local)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"--clip_model {self.name}: cannot be loaded ({_first_line(error)}); give a local folder"
            ) from None
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        return {"x": model(pixels).image_embeds.clone()}


class CLIPTextTargetBuilder:
    """Text states (K, 77, 768) and pooled vectors (K, 768) of the class prompts, as the image model reads them.

    aMUSEd: penultimate hidden states and projected text embedding. Stable Diffusion: last hidden state, and the state at
    the end token as the pooled vector.

    Parameters
    ----------
    name : str
        The image model: a local folder or a hub address. Only its tokenizer and text encoder are loaded.
    cache_dir : Path
    """

    def __init__(self, name: str, cache_dir: Path):
        self.name, self.cache_dir = name, Path(cache_dir)

    def build(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises UserError if the model cannot be loaded."""
        kept = _cached(self.cache_dir, "text", [*_identity(self.name), *prompts], lambda: self._encode(list(prompts)))
        return kept["states"], kept["pooled"]

    @torch.inference_mode()
    def _encode(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        try:
            local = Path(self.name).is_dir()
            kinds = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
            kind = kinds[DiffusionPipeline.load_config(self.name, local_files_only=local)["text_encoder"][1]]
            tokenizer = CLIPTokenizer.from_pretrained(self.name, subfolder="tokenizer", local_files_only=local)
            model = kind.from_pretrained(
                self.name, subfolder="text_encoder", local_files_only=local, dtype=torch.float32
            ).eval()
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"--image_model {self.name}: cannot be loaded ({_first_line(error)}); give a local folder"
            ) from None
        ids = tokenizer(
            prompts, padding="max_length", truncation=True, max_length=QUERIES, return_tensors="pt"
        ).input_ids
        if kind is CLIPTextModel:
            out = model(ids)
            return {"states": out.last_hidden_state.clone(), "pooled": out.pooler_output.clone()}
        out = model(ids, output_hidden_states=True)
        return {"states": out.hidden_states[-2].clone(), "pooled": out.text_embeds.clone()}


def _identity(name: str) -> list[str]:
    """What tells one model from another: the hub address, or a local folder's files."""
    if not Path(name).is_dir():
        return [name]
    files = sorted(path for path in Path(name).rglob("*") if path.is_file())
    return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in map(Path.resolve, files)]


def _cached(folder: Path, what: str, key: list[str], build) -> dict[str, torch.Tensor]:
    path = folder / f"clip_{what}_targets-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        tensors = build()
        with written_whole(path) as unfinished:
            unfinished.write_bytes(save(tensors))
    return read_tensors(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

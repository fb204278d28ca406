"""EEG tokens → CLIP space: the Q-Former style mapper, its published baselines, the loss terms, the targets."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from models.hub import OnHub
from models.image_generator import HINT, load_image_model
from models.loading import load_processor, load_whole
from models.poolings import FEATURES
from models.token_encoders import AfterEncoder
from models.vision import over_blurs
from utils.checkpoints import keep, read_kept
from utils.errors import UserError, loading
from utils.hub import fetch_nothing

QUERIES = 77  # CLIP's text length
WIDTH = 512  # inside the mapper

# ---------------------------------------------------------------- mappers
# (B, n, in_dim) EEG tokens → text states (B, 77, D), pooled vector (B, D), class logits (B, K)


class QFormerMapper(nn.Module, OnHub):
    """The seed's mapper: an MLP, four transformer layers, 77 queries that attend to the tokens; 10,862,602 parameters.

    n_tokens : int. EEG tokens a trial; only learned positions depend on it.
    clip_width : int. D, 768 for CLIP ViT-L/14.
    token_positions : {"none", "learned"}. "none" is the seed's: the output is then the same for any order of the
        tokens. "learned" adds an embedding a token.
    in_dim : int. Width of a token, 200 for CSBrain.
    """

    def __init__(self, n_classes=10, n_tokens=20, clip_width=768, token_positions="none", dropout=0.1, in_dim=FEATURES):
        super().__init__()
        self.n_tokens = n_tokens
        self.input_mlp, self.positions = input_layers(in_dim, n_tokens, token_positions, dropout)
        order = {"batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=8, dim_feedforward=2 * WIDTH, dropout=dropout, **order)
        self.encoder = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        self.queries = nn.Parameter(0.02 * torch.randn(QUERIES, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, num_heads=8, dropout=dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.to_states = nn.Sequential(nn.Linear(WIDTH, clip_width), nn.LayerNorm(clip_width))
        self.to_pooled = nn.Sequential(nn.Linear(clip_width, clip_width), nn.Tanh())
        self.head = nn.Linear(clip_width, n_classes)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.input_mlp(tokens)  # (B, n, 512)
        x = x if self.positions is None else x + self.positions
        x = self.encoder(x)  # (B, n, 512)
        queries = self.queries.expand(len(x), -1, -1)  # (B, 77, 512)
        attended, _ = self.attention(queries, x, x, need_weights=False)
        states = self.to_states(self.attention_norm(attended + queries))  # (B, 77, D)
        pooled = self.to_pooled(states.mean(dim=1))  # (B, D)
        return states, pooled, self.head(pooled)


class MLPMapper(nn.Module, OnHub):
    """The published "no Q-Former": tokens are averaged after the MLP. Parameters as `QFormerMapper`.

    Every text position gets the pooled vector and a learned vector of its own.
    """

    def __init__(self, n_classes=10, n_tokens=20, clip_width=768, token_positions="none", dropout=0.1, in_dim=FEATURES):
        super().__init__()
        self.n_tokens = n_tokens
        self.input_mlp, self.positions = input_layers(in_dim, n_tokens, token_positions, dropout)
        self.text_positions = nn.Parameter(0.02 * torch.randn(QUERIES, clip_width))
        self.to_pooled = nn.Sequential(nn.Linear(WIDTH, clip_width), nn.Tanh())
        self.head = nn.Linear(clip_width, n_classes)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.input_mlp(tokens)  # (B, n, 512)
        x = x if self.positions is None else x + self.positions
        pooled = self.to_pooled(x.mean(dim=1))  # (B, D)
        return pooled[:, None] + self.text_positions, pooled, self.head(pooled)


class LinearMapper(nn.Module, OnHub):
    """The published linear probe: one linear layer an output. Parameters as `QFormerMapper`; dropout has no part.

    Every text position gets the pooled vector and a learned vector of its own.
    """

    def __init__(self, n_classes=10, n_tokens=20, clip_width=768, token_positions="none", dropout=0.1, in_dim=FEATURES):
        super().__init__()
        self.n_tokens = n_tokens
        self.text_positions = nn.Parameter(0.02 * torch.randn(QUERIES, clip_width))
        self.to_pooled = nn.Linear(n_tokens * in_dim, clip_width)
        self.head = nn.Linear(n_tokens * in_dim, n_classes)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        flat = tokens.flatten(1)  # (B, n·in_dim)
        pooled = self.to_pooled(flat)
        return pooled[:, None] + self.text_positions, pooled, self.head(flat)


def input_layers(in_dim: int, n_tokens: int, token_positions: str, dropout: float) -> tuple:
    """The MLP that every token goes through, and the learned positions, where there are any."""
    first, last = nn.Linear(in_dim, WIDTH), nn.Linear(WIDTH, WIDTH)
    mlp = nn.Sequential(first, nn.LayerNorm(WIDTH), nn.GELU(), nn.Dropout(dropout), last)
    return mlp, nn.Parameter(0.02 * torch.randn(n_tokens, WIDTH)) if token_positions == "learned" else None


EEGCLIPMapper = QFormerMapper  # the seed's name


class EEGMapperModel(AfterEncoder, nn.Module):
    """A mapper, with the encoder and the pooling before it where there are no cached tokens: see `AfterEncoder`."""

    def __init__(self, mapper: nn.Module, encoder=None, reducer=None, train_encoder: str = "never"):
        super().__init__()
        self.mapper, self.encoder, self.reducer, self.train_encoder = mapper, encoder, reducer, train_encoder

    def set_phase(self, joint: bool) -> list[nn.Parameter]:
        """Train the mapper, and the encoder as `train_encoder` says; returns what is trained of the encoder."""
        self.mapper.requires_grad_(True)
        return self.set_encoder_phase(joint)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.mapper(self.encode(x))


# ---------------------------------------------------------------- loss


@dataclass
class MapperBatch:
    """What a loss term reads."""

    states: torch.Tensor  # (B, 77, D), (B, D) and (B, K): the mapper's outputs
    pooled: torch.Tensor
    logits: torch.Tensor
    label: torch.Tensor  # (B,) int64
    prototypes: torch.Tensor  # (K, D), a target vector a class: CLIP embeddings of the photos, or of the prompts
    text_states: torch.Tensor  # (K, 77, D): the image model's own text states of the class prompts
    temperature: float = 0.5  # τ of InfoNCE over the K prototypes
    label_smoothing: float = 0.0  # of the head's cross-entropy

    @property
    def cosines(self) -> torch.Tensor:
        """(B, K) between pooled vectors and prototypes."""
        return F.normalize(self.pooled, dim=-1) @ F.normalize(self.prototypes, dim=-1).T


# name, as in --lambda_NAME → term
LOSS_TERMS: dict[str, Callable[[MapperBatch], torch.Tensor]] = {
    "cls": lambda b: F.cross_entropy(b.logits, b.label, label_smoothing=b.label_smoothing),
    "contrastive": lambda b: F.cross_entropy(b.cosines / b.temperature, b.label),
    "cos": lambda b: (1 - b.cosines.gather(1, b.label[:, None])).mean(),
    "mse": lambda b: F.mse_loss(b.states, b.text_states[b.label]),
}


def mapper_loss(batch: MapperBatch, weights: Mapping[str, float]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The weighted sum of the terms that `weights` names, and the unweighted terms.

    With λ as in the seed: 5·CE + 2·InfoNCE + 1·(1 − cosine) + 0.1·MSE; the warm-up leaves the last one out.
    """
    parts = {name: LOSS_TERMS[name](batch) for name in weights}
    return sum(weights[name] * part for name, part in parts.items()), parts


def mean_pairwise_cosine(vectors: torch.Tensor) -> float:
    """Of all pairs of rows of (K, D): how alike the targets of different classes are."""
    unit, k = F.normalize(vectors.float(), dim=-1), len(vectors)
    return float(((unit @ unit.T).sum() - k) / (k * (k - 1)))


# ---------------------------------------------------------------- targets


class CLIPImageTargetBuilder:
    """Projected CLIP embeddings of pictures, (K, 768), built once and kept by model and pixels.

    name : str. A folder laid out like `openai/clip-vit-large-patch14` (nothing is downloaded then), or a hub address.
    """

    def __init__(self, name: str, cache_dir: Path):
        self.name, self.cache_dir = name, Path(cache_dir)
        self.local = fetch_nothing(name, "config.json", "--clip_model")

    def build(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(K, 768) float32, in the order of the pictures; UserError if the model cannot be loaded."""
        digests = [hashlib.sha256(f"{p.size} {p.mode}".encode() + p.tobytes()).hexdigest() for p in pictures]
        key = [*_identity(self.name), *digests]
        return _cached(self.cache_dir, self.name, "image", key, lambda: {"x": self.load()(list(pictures))})["x"]

    def load(self, blur: Sequence[float] = ()) -> Callable:
        """The model, as a function of pictures → (K, 768). `blur`: see `models.vision.over_blurs`."""
        transformers.logging.set_verbosity_error()  # the text tower's weights are left out on purpose
        safe = {"local_files_only": self.local, "trust_remote_code": False}
        settings = safe | {"dtype": torch.float32}
        model = load_whole(CLIPVisionModelWithProjection, self.name, "--clip_model", HINT, **settings).eval()
        with loading(f"--clip_model {self.name}", HINT):
            processor = load_processor(CLIPImageProcessorPil, self.name, **safe)

        @torch.inference_mode()
        def embed(pictures: list[Image.Image]) -> torch.Tensor:
            with loading(f"--clip_model {self.name}", HINT):
                pixels = processor(pictures, return_tensors="pt")["pixel_values"]
                return over_blurs(lambda x: model(x).image_embeds.clone(), pixels, blur)

        return embed


class CLIPTextTargetBuilder:
    """Text states (K, 77, D) and pooled vectors (K, D) of prompts, as the image model that will draw reads them.

    name : str. The image model: a local folder or a hub address. Only its tokenizers and text encoders are loaded.
    """

    def __init__(self, name: str, cache_dir: Path):
        self.name, self.cache_dir = name, Path(cache_dir)
        fetch_nothing(name, "model_index.json", "--image_model")

    def build(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises UserError if the model cannot be loaded."""
        key = [*_identity(self.name), *prompts]
        kept = _cached(self.cache_dir, self.name, "text", key, lambda: self.encode(prompts))
        return kept["states"], kept["pooled"]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The same, computed now: states and pooled. The model is loaded once."""
        reader = self._reader = getattr(self, "_reader", None) or load_image_model(self.name, for_reading=True)
        with loading(f"--image_model {self.name}", HINT):
            states = torch.cat([reader.read_prompt(prompt).states for prompt in prompts]).clone()
            pooled = torch.cat([reader.pooled_target(prompt) for prompt in prompts]).clone()
        return {"states": states, "pooled": pooled}


def _identity(name: str) -> list[str]:
    """What tells one model from another: the hub address, or a local folder's files."""
    if not Path(name).is_dir():
        return [name]
    files = sorted(path for path in Path(name).rglob("*") if path.is_file())
    return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in map(Path.resolve, files)]


def _cached(folder: Path, name: str, what: str, key: list[str], build: Callable) -> dict[str, torch.Tensor]:
    """Tensors from the cache where they are there, whole and finite; else built, and kept where they can be."""
    path = folder / f"clip_{what}_targets-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.safetensors"
    tensors = read_kept(path)
    if tensors is None:
        tensors = build()
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise UserError(f"{name} gives NaN or infinity as {what} targets; the model's weights are damaged")
        keep(tensors, path)
    return tensors

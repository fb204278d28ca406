"""Tiny models in place of the published weights, in the same file layouts, for the embedded default and the tests.

They are not the published models, and nothing else in the code knows that they are small.
"""

import json
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from datasets.visual_imagery_llm_dataset import MONTAGE
from models.CSBrain import CSBrain
from utils.checkpoints import save_checkpoint
from utils.paths import written_whole


def write_csbrain(path: Path, seed: int = 0) -> None:
    """A `CSBrain.pth` of the published names and shapes that passes on what its patch embedding sees.

    Twelve layers of plain random weights pass on almost nothing of the signal. Here the branches that are added to the
    stream are small, and the spectral projection outweighs the convolutions.
    """
    torch.manual_seed(seed)
    model = CSBrain(brain_regions=MONTAGE.brain_regions, sorted_indices=MONTAGE.sorted_indices)
    state = model.state_dict()
    for key, value in state.items():
        branch = key.endswith(("attn.out_proj.weight", "linear2.weight")) or key.startswith(("TemEmbed", "BrainEmbed"))
        if branch and value.ndim > 1:
            value *= 0.02
        elif key.startswith(("patch_embedding.proj_in.7", "patch_embedding.positional_encoding")):
            value *= 0.05
        elif key == "patch_embedding.spectral_proj.0.weight":
            value *= 30 * torch.arange(value.shape[1]).sqrt()  # EEG's amplitude falls as 1/√f or faster
    save_checkpoint({f"module.{key}": value for key, value in state.items()}, path)


# ---------------------------------------------------------------- image models


def byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer without merges: one token a byte."""
    letters = sorted(ByteLevel.alphabet())  # the 256 bytes as printable characters
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def random_text_encoder(kind: type, tokenizer: CLIPTokenizer) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A frozen CLIP text encoder of the published width, 768, and two layers, whose weights are made by rule.

    The tiny image models were trained on its outputs. Made by rule it need not be shipped: 13 MB in half precision.

    kind : {CLIPTextModel, CLIPTextModelWithProjection}. The second adds the projection that gives aMUSEd its pooled
        vector; the rest is the same.
    tokenizer : CLIPTokenizer
    """
    model = kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=768, intermediate_size=256, projection_dim=768,
            num_hidden_layers=2, num_attention_heads=12, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                rng = np.random.default_rng(zlib.crc32(name.encode()))
                scale = 1.0 if "embedding" in name else value.shape[1] ** -0.5
                # half precision, as it is saved
                value.copy_(torch.from_numpy(rng.standard_normal(value.shape) * scale).half())
            else:
                value.fill_(float("norm" in name and name.endswith("weight")))
    return model.eval().requires_grad_(False)


def complete_image_model(shipped: Path, folder: Path) -> None:
    """Copy a shipped tiny image model and write its text encoder and tokenizer beside the rest."""
    tokenizer = byte_tokenizer()
    name = json.loads((shipped / "model_index.json").read_text())["text_encoder"][1]
    kind = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}[name]
    with written_whole(folder) as unfinished:
        shutil.copytree(shipped, unfinished)
        tokenizer.save_pretrained(unfinished / "tokenizer")
        random_text_encoder(kind, tokenizer).half().save_pretrained(unfinished / "text_encoder")


def complete_ip_adapter(shipped: Path, folder: Path) -> None:
    """Write an IP-Adapter in the published layout; its projection is shipped as two factors, a tenth of the size."""
    state = load_file(shipped / "factors.safetensors")
    wide, narrow = state.pop("wide").float(), state.pop("narrow").float()
    state["image_proj.proj.weight"] = (wide @ narrow).half()
    with written_whole(folder) as unfinished:
        (unfinished / "models").mkdir(parents=True)
        save_file(state, unfinished / "models/ip-adapter_sd15.safetensors", metadata={"format": "pt"})

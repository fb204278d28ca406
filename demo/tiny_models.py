"""Tiny models in place of the published weights, in the same file layouts, for the embedded default and the tests.

They are not the published models, and nothing else in the code knows that they are small.
"""

import json
import shutil
import string
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from datasets.visual_imagery_llm_dataset import MONTAGE
from models.CSBrain import CSBrain
from utils.checkpoints import save_checkpoint
from utils.paths import written_whole
from utils.progress import progress

# TinyLlama-Chat's format: a role, a newline, the text, the end token
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
FILLER = "signal power over time seconds band rhythm scalp electrode trial phase wave noise slow fast".split()


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


def write_language_model(
    folder: Path,
    conversations: Sequence[tuple[str, str, Sequence[str], Sequence[str]]],
    seed: int = 0,
    steps: int = 600,
) -> None:
    """A small Llama with tokenizer and chat template, in the layout of `TinyLlama/TinyLlama-1.1B-Chat-v1.0`.

    It is trained on text alone: chats in which the user's turn hints at something in words and the assistant answers in
    a sentence. It never sees EEG.

    folder : Path
    conversations : sequence of (system prompt, user prompt with "{eeg}", hint words, answers)
    seed, steps : int
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    texts = [text for system, user, hints, answers in conversations for text in (system, user, *hints, *answers)]
    tokenizer = _train_tokenizer([*texts, *FILLER, "<|system|>\n<|user|>\n<|assistant|>\n"])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in (bar := progress(range(steps), desc="language model")):
        prompts, answers = zip(
            *(_chat(rng, tokenizer, *conversations[rng.integers(len(conversations))]) for _ in range(16)), strict=True
        )
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # (16, T)
        wanted = torch.tensor(
            [[-100] * len(p) + a + [-100] * (longest - len(p) - len(a)) for p, a in zip(prompts, answers, strict=True)]
        )
        logits = model(
            input_ids=ids, attention_mask=(torch.arange(longest) < torch.tensor([[len(row)] for row in rows])).long()
        ).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    with written_whole(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _chat(rng, tokenizer, system: str, user: str, hints, answers) -> tuple[list[int], list[int]]:
    """Token ids of one chat: the hint stands among filler words where a recording will stand later."""
    words = list(rng.choice(FILLER, rng.integers(4, 16)))
    for _ in range(rng.integers(1, 4)):
        words.insert(rng.integers(len(words) + 1), hints[rng.integers(len(hints))])
    chat = [{"role": "system", "content": system}, {"role": "user", "content": user.replace("{eeg}", " ".join(words))}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    answer = tokenizer(answers[rng.integers(len(answers))], add_special_tokens=False).input_ids
    return tokenizer(prompt, add_special_tokens=False).input_ids, [*answer, tokenizer.eos_token_id]


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Llama's kind of tokenizer: byte-pair encoding over words marked by "▁"."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = BpeTrainer(
        vocab_size=1024,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


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

"""EEG features → a few tokens → a projection into a language model's embedding space → text."""

import copy
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache

from utils import montages
from utils.errors import UserError

FEATURES = 200  # CSBrain's width
EEG_PLACE = "{eeg}"  # where the EEG tokens stand in the user's turn
LORA = dict(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

# The montages under the seed's names: region code of every electrode, electrode names in input order, region code →
# electrodes in the encoder's order.
BCIC_BRAIN_REGIONS, BCIC_ELECTRODE_LABELS, BCIC_TOPOLOGY = (
    montages.BCIC.brain_regions, list(montages.BCIC.electrodes), montages.BCIC.topology,
)  # fmt: skip
VI_BRAIN_REGIONS, VI_ELECTRODE_LABELS, VI_TOPOLOGY = (
    montages.VI.brain_regions, list(montages.VI.electrodes), montages.VI.topology,
)  # fmt: skip
FACED_BRAIN_REGIONS, FACED_ELECTRODE_LABELS, FACED_TOPOLOGY = (
    montages.FACED.brain_regions, list(montages.FACED.electrodes), montages.FACED.topology,
)  # fmt: skip


class EEGTokenReducer(nn.Module):
    """Mean over each group's electrodes: (B, C, P, 200) in the encoder's order → (B, groups·P, 200), group-major.

    Parameters
    ----------
    montage : Montage
    token_pooling : {"region", "hemisphere", "electrode"}
        "region" is the seed's (12 tokens for BCIC, 20 for VI) and averages left and right together; "hemisphere"
        splits each region into left, midline and right (28 and 56); "electrode" does not pool.

    It has no parameters.
    """

    def __init__(self, montage: montages.Montage, token_pooling: str = "region"):
        super().__init__()
        self.groups = montage.groups(token_pooling)
        weights = torch.zeros(len(self.groups), len(montage.electrodes))  # (G, C)
        for row, positions in zip(weights, self.groups.values(), strict=True):
            row[positions] = 1 / len(positions)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = torch.einsum("gc,bcpd->bgpd", self.weights.to(features.dtype), features)
        return pooled.flatten(1, 2)  # (B, G·P, 200)


class EEGProjection(nn.Module):
    """(B, n, 200) EEG tokens → (B, n, hidden) embeddings; 4,616,192 parameters for TinyLlama's 2048."""

    def __init__(self, hidden: int = 2048, in_dim: int = FEATURES, dropout: float = 0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden),
        )  # fmt: skip

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(tokens)


class EEGLanguageModel(nn.Module):
    """A causal language model that reads EEG tokens inside the user's turn of its chat.

    Parameters
    ----------
    language_model : transformers or peft causal language model
        Its base weights stay as they are; LoRA layers are trained where `set_phase` says so.
    tokenizer : its tokenizer, with a chat template
    system_prompt, user_prompt : str
        `user_prompt` holds "{eeg}" once, where the EEG tokens stand.
    projection : EEGProjection
    encoder : nn.Module, optional
        CSBrain, for signals instead of cached tokens; frozen unless `train_encoder`.
    reducer : EEGTokenReducer, optional
    train_encoder : bool

    Inputs `x` are EEG tokens (B, n, 200), or signals (B, C, P, 200) where an encoder is given.
    """

    def __init__(
        self, language_model, tokenizer, system_prompt: str, user_prompt: str, projection: EEGProjection,
        encoder: nn.Module | None = None, reducer: EEGTokenReducer | None = None, train_encoder: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.language_model, self.tokenizer = language_model, tokenizer
        self.projection, self.encoder, self.reducer = projection, encoder, reducer
        self.train_encoder = train_encoder
        before, after = split_prompt(tokenizer, system_prompt, user_prompt)
        self.register_buffer("before_ids", torch.tensor([before]), persistent=False)  # (1, L)
        self.register_buffer("after_ids", torch.tensor([after]), persistent=False)  # (1, S)
        self._prefix = (None, None)  # (model state, keys and values of the part before the EEG)

    # ------------------------------------------------------------ what is trained

    def set_phase(self, joint: bool) -> list[nn.Parameter]:
        """Freeze all but the projection (warm-up), or but projection, LoRA and, if asked for, encoder (joint).

        Returns the trainable parameters of projection and LoRA; the encoder's are `encoder.parameters()`.
        """
        self.requires_grad_(False)
        self.projection.requires_grad_(True)
        for parameter in self.lora_parameters():
            parameter.requires_grad_(joint)
        if self.train_encoder and joint:
            self.encoder.requires_grad_(True)
            self.encoder.patch_embedding.mask_encoding.requires_grad_(False)
            for name, block in self.encoder.BrainEmbedEEGLayer.region_blocks.items():
                block.requires_grad_(name in self.encoder.area_config)  # regions that this montage has
        lora = self.lora_parameters() if joint else []
        return [*self.projection.parameters(), *lora]

    def lora_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.language_model.named_parameters() if "lora_" in name]

    def train(self, mode: bool = True) -> "EEGLanguageModel":
        super().train(mode)
        if self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()  # a frozen encoder drops nothing out
        return self

    # ------------------------------------------------------------ training

    def forward(self, x: torch.Tensor, target_ids: torch.Tensor, target_mask: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross-entropy over the target tokens only.

        Parameters
        ----------
        x : (B, n, 200) or (B, C, P, 200)
        target_ids : (B, T) int64
            Answers, each ended by the end-of-sequence token, padded on the right with anything.
        target_mask : (B, T) bool
            False where padded.
        """
        prompt = self._embed_prompt(x)  # (B, n + S, H)
        target = self._embed(target_ids[:, :-1]).to(prompt.dtype)  # (B, T − 1, H)
        cache, length = self._prefix_cache(len(x))
        seen = torch.ones(len(x), length + prompt.shape[1], dtype=torch.bool, device=target_mask.device)
        logits = self.language_model(
            inputs_embeds=torch.cat([prompt, target], dim=1),
            attention_mask=torch.cat([seen, target_mask[:, :-1]], dim=1).long(),
            past_key_values=cache,
            logits_to_keep=target_ids.shape[1],
        ).logits  # (B, T, V)
        loss = F.cross_entropy(logits.float().transpose(1, 2), target_ids, reduction="none")  # (B, T)
        return (loss * target_mask).sum() / target_mask.sum()

    # ------------------------------------------------------------ the two read-outs

    @torch.no_grad()
    def decode(
        self, x: torch.Tensor, sentences: Sequence[str], max_new_tokens: int = 64
    ) -> tuple[list[str], torch.Tensor]:
        """Greedy text, and how likely each of the given sentences is.

        Returns
        -------
        texts : list of B str
        scores : (B, K) float tensor
            Mean log-probability per token of each sentence with its end-of-sequence token.
        """
        cache, _ = self._prefix_cache(len(x))
        out = self.language_model(
            inputs_embeds=self._embed_prompt(x), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        first = out.logits[:, -1].float()  # (B, V)
        states = keys_and_values(out.past_key_values)
        return self._greedy(first, states, max_new_tokens), self._score(first, states, sentences)

    def _greedy(self, logits: torch.Tensor, states: list, max_new_tokens: int) -> list[str]:
        eos = self.tokenizer.eos_token_id
        cache, ids = DynamicCache(states), []
        finished = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for _ in range(max_new_tokens):
            chosen = logits.argmax(dim=-1).masked_fill(finished, eos)  # (B,)
            finished |= chosen == eos
            ids.append(chosen)
            if finished.all():
                break
            out = self.language_model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True)
            logits = out.logits[:, -1]
        rows = torch.stack(ids, dim=1).tolist()
        rows = [row[: row.index(eos)] if eos in row else row for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _score(self, first: torch.Tensor, states: list, sentences: Sequence[str]) -> torch.Tensor:
        scores = []
        for sentence in sentences:
            ids = self.tokenizer(sentence, add_special_tokens=False).input_ids + [self.tokenizer.eos_token_id]
            ids = torch.tensor([ids], device=first.device).expand(len(first), -1)  # (B, T)
            out = self.language_model(input_ids=ids[:, :-1], past_key_values=DynamicCache(states), use_cache=True)
            logits = torch.cat([first[:, None], out.logits.float()], dim=1)  # (B, T, V)
            scores.append(-F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(dim=1))
        return torch.stack(scores, dim=1)

    # ------------------------------------------------------------ parts

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Signals (B, C, P, 200) → reduced tokens (B, n, 200); tokens pass through."""
        return self.reducer(self.encoder(x)) if x.ndim == 4 else x

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.language_model.get_input_embeddings()(ids)

    def _embed_prompt(self, x: torch.Tensor) -> torch.Tensor:
        """EEG tokens and the text behind them, (B, n + S, H), in the language model's own precision."""
        after = self._embed(self.after_ids).expand(len(x), -1, -1)
        return torch.cat([self.projection(self.encode(x)).to(after.dtype), after], dim=1)

    def _prefix_cache(self, batch: int) -> tuple[DynamicCache, int]:
        """Keys and values of the text before the EEG, the same for every trial: computed once per model state.

        While LoRA is being trained they carry its gradient, so they are made anew for every batch, of one row.
        """
        lora = self.lora_parameters()
        if torch.is_grad_enabled() and any(p.requires_grad for p in lora):
            states = self._read_prefix()
        else:
            # in-place updates, by an optimiser or a loader, raise a tensor's version
            state = (self.training, torch.is_autocast_enabled(self.before_ids.device.type), *[p._version for p in lora])
            if self._prefix[0] != state:
                with torch.no_grad():
                    self._prefix = (state, self._read_prefix())
            states = self._prefix[1]
        expanded = [tuple(t.expand(batch, -1, -1, -1) for t in layer) for layer in states]
        return DynamicCache(expanded), self.before_ids.shape[1]

    def _read_prefix(self) -> list:
        return keys_and_values(
            self.language_model(input_ids=self.before_ids, use_cache=True, logits_to_keep=1).past_key_values
        )


def keys_and_values(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per layer (B, heads, length, width); a `DynamicCache` made of them appends without changing them."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def split_prompt(tokenizer, system_prompt: str, user_prompt: str) -> tuple[list[int], list[int]]:
    """Token ids of the chat before and after the EEG, by the tokenizer's own chat template.

    The chat is tokenised whole, with a token of its own where the EEG stands, so that neither part changes by being
    cut off; that token then goes, and no placeholder text is left.

    Raises
    ------
    UserError
        If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("the language model's tokenizer has no chat template; use a chat model such as TinyLlama-Chat")
    if user_prompt.count(EEG_PLACE) != 1:
        raise ValueError(f"the user prompt must hold {EEG_PLACE} once")
    mark = "<|eeg-place|>"
    chat = [
        {"role": "system", "content": system_prompt},
        {"role": "user", "content": user_prompt.replace(EEG_PLACE, mark)},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    marked = copy.deepcopy(tokenizer)
    marked.add_special_tokens({"additional_special_tokens": [mark]})
    ids = marked(text, add_special_tokens=False).input_ids
    place = ids.index(marked.convert_tokens_to_ids(mark))
    return ids[:place], ids[place + 1 :]


# ---------------------------------------------------------------- loading


def load_language_model(name: str, device: torch.device, quantize: bool, dtype: torch.dtype) -> tuple:
    """A causal language model and its tokenizer, from a local folder or the hub.

    Parameters
    ----------
    name : str
        A folder laid out like `TinyLlama/TinyLlama-1.1B-Chat-v1.0` (nothing is downloaded then), or a hub address.
    quantize : bool
        4-bit NF4 with double quantisation (bitsandbytes).
    dtype : torch.dtype
        Of the weights, and of the arithmetic on quantised ones.

    Raises
    ------
    UserError
        If the model cannot be loaded.
    """
    local = Path(name).is_dir()
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
        model = AutoModelForCausalLM.from_pretrained(
            name, local_files_only=local, dtype=dtype, device_map={"": device},
            quantization_config=config if quantize else None,
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        hint = "give a local folder or a hub address, and --no_quantize where bitsandbytes does not support the device"
        raise UserError(f"--llm {name}: cannot be loaded ({reason}); {hint}") from None
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Where the CPU can, bitsandbytes repacks a layer when it first sees evaluation and computes in bfloat16 from
            # then on, training included; a run that evaluated and one that resumed would then differ.
            module.support_avx512bf16_for_cpu = False
    return model.eval().requires_grad_(False), tokenizer


def add_lora(language_model) -> peft.PeftModel:
    """Wrap a plain language model in the seed's LoRA; 1,126,400 parameters for TinyLlama."""
    if isinstance(language_model, peft.PeftModel):
        raise ValueError("the language model has an adapter already; an adapter around an adapter trains nothing right")
    return peft.get_peft_model(language_model, peft.LoraConfig(**LORA))


def load_lora(model: peft.PeftModel, folder: str | Path) -> None:
    """Put an adapter's weights from disk into a model that `add_lora` made.

    Raises
    ------
    UserError
        If the folder is missing, is no adapter, or one of another shape.
    """
    folder = Path(folder)
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"{folder} is not a LoRA folder (it has no adapter_model.safetensors); --lora_dir names one")
    given = peft.load_peft_weights(str(folder), device="cpu")
    wanted = peft.get_peft_model_state_dict(model)
    wrong = [key for key in given.keys() | wanted.keys()
             if key not in given or key not in wanted or given[key].shape != wanted[key].shape]  # fmt: skip
    if wrong:
        raise UserError(
            f"{folder} is an adapter for another model: {sorted(wrong)[0]} and {len(wrong) - 1} more differ"
        )
    peft.set_peft_model_state_dict(model, given)

"""EEG features → a few tokens → a projection into a language model's embedding space → text."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from models.hub import OnHub
from models.loading import building, check_config, load_tokenizer, load_whole, refuse_code
from models.poolings import FEATURES, EEGTokenReducer
from models.token_encoders import AfterEncoder
from utils.checkpoints import as_bytes
from utils.errors import UserError, loading
from utils.files import read_json
from utils.hub import fetch_nothing
from utils.limits import MAX_ADDED, MAX_TEMPLATE, TEMPLATE_BYTES, TEMPLATE_SECONDS, bounded

EEG_PLACE = "{eeg}"  # where the EEG tokens stand in the user's turn
LORA_R, LORA_ALPHA, LORA_TARGETS, LORA_DROPOUT = 8, 16, ("q_proj", "v_proj"), 0.05


class EEGProjection(nn.Module, OnHub):
    """(B, n, in_dim) EEG tokens → (B, n, hidden) embeddings.

    4,616,192 parameters for CSBrain's 200 and TinyLlama's 2048.
    """

    def __init__(self, hidden: int = 2048, in_dim: int = FEATURES, dropout: float = 0.1):
        super().__init__()
        first, second = nn.Linear(in_dim, hidden), nn.Linear(hidden, hidden)
        norms = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.layers = nn.Sequential(first, norms[0], nn.GELU(), nn.Dropout(dropout), second, norms[1])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


class ClassHead(nn.Module):
    """(B, n, in_dim) EEG tokens → (B, K) logits: one linear layer, beside the language model.

    normalise : bool. Bring each token to one size first: those of a frozen encoder have any.
    """

    def __init__(self, n_tokens: int, in_dim: int, n_classes: int, normalise: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(in_dim) if normalise else nn.Identity()
        self.linear = nn.Linear(n_tokens * in_dim, n_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.norm(tokens).flatten(1))


class EEGLanguageModel(AfterEncoder, nn.Module):
    """A causal language model that reads EEG tokens inside the user's turn of its chat.

    language_model : causal language model of transformers or peft. `set_phase` trains its LoRA layers at most.
    tokenizer : its tokenizer, with a chat template
    system_prompt, user_prompt : str. `user_prompt` holds "{eeg}" once, where the EEG tokens stand.
    encoder, reducer, train_encoder : see `AfterEncoder`.
    head : ClassHead, optional. Says the class from the same tokens.
    adapter : nn.Module, optional. Tokens (B, n, D) → tokens, before projection and head.
    mirror : Mirror, optional. Of what an encoder reads: probabilities are the mean over a trial and its mirror image.

    Inputs `x` are what the encoder reads, (B, …); without an encoder, EEG tokens (B, n, D).
    Call `read_prefix` whenever the weights have changed and before anything is decoded: the text before the EEG is the
    same for every trial, so it is read once.
    """

    def __init__(
        self,
        language_model,
        tokenizer,
        system_prompt: str,
        user_prompt: str,
        projection: EEGProjection,
        encoder: nn.Module | None = None,
        reducer: EEGTokenReducer | None = None,
        train_encoder: str = "never",
        head: ClassHead | None = None,
        adapter: nn.Module | None = None,
    ):
        super().__init__()
        self.language_model, self.tokenizer = language_model, tokenizer
        self.head, self.adapter, self.mirror = head, adapter, None
        self.projection, self.encoder, self.reducer, self.train_encoder = projection, encoder, reducer, train_encoder
        before, after = split_prompt(tokenizer, system_prompt, user_prompt)
        self.register_buffer("before_ids", torch.tensor([before]), persistent=False)  # (1, L)
        self.register_buffer("after_ids", torch.tensor([after]), persistent=False)  # (1, S)
        self._prefix: list | None = None  # keys and values of the text before the EEG

    # ------------------------------------------------------------ what is trained

    def set_phase(self, joint: bool) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """Warm-up: train projection and head. Joint: these and LoRA. The encoder as `train_encoder` says.

        Returns the parameters that are trained: of projection, adapter and LoRA, of the encoder, of the head.
        """
        self.requires_grad_(False)
        trained = [*self.projection.parameters(), *(self.lora_parameters() if joint else [])]
        trained += self.adapter.parameters() if self.adapter else []
        of_head = list(self.head.parameters()) if self.head else []
        for parameter in (*trained, *of_head):
            parameter.requires_grad_(True)
        return trained, self.set_encoder_phase(joint), of_head

    def lora_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.language_model.named_parameters() if "lora_" in name]

    def encode(self, x: Tensor) -> Tensor:
        tokens = super().encode(x)
        return tokens if self.adapter is None else self.adapter(tokens)

    # ------------------------------------------------------------ training

    def forward(
        self,
        x: Tensor,
        target_ids: Tensor,
        target_mask: Tensor,
        label_smoothing: float = 0.0,
        labels: Tensor | None = None,
        weights: tuple[float | Tensor, float] = (1.0, 0.0),
    ) -> Tensor:
        """Mean next-token cross-entropy over the target tokens only, and the head's cross-entropy, each weighted.

        target_ids : (B, T) int64. Answers, each ended by the end-of-sequence token; padded on the right with anything.
        target_mask : (B, T) bool. False where padded.
        labels : (B,) int64, for the head. weights : of the two losses; the second one counts where there is a head.
        """
        tokens = self.encode(x)
        prompt = self._embed_prompt(tokens)  # (B, n + S, H)
        target = self._embed(target_ids[:, :-1]).to(prompt.dtype)  # (B, T − 1, H)
        cache, length = self._prefix_cache(len(x))
        seen = torch.ones(len(x), length + prompt.shape[1], dtype=torch.bool, device=target_mask.device)
        mask, n_kept = torch.cat([seen, target_mask[:, :-1]], dim=1).long(), target_ids.shape[1]
        how = {"attention_mask": mask, "past_key_values": cache, "logits_to_keep": n_kept}
        out = self.language_model(inputs_embeds=torch.cat([prompt, target], dim=1), **how)
        logits = out.logits.float()  # (B, T, V)
        loss = F.cross_entropy(logits.mT, target_ids, reduction="none", label_smoothing=label_smoothing)  # (B, T)
        loss = weights[0] * (loss * target_mask).sum() / target_mask.sum()
        if self.head is None:
            return loss
        return loss + weights[1] * F.cross_entropy(self.head(tokens).float(), labels, label_smoothing=label_smoothing)

    # ------------------------------------------------------------ decoding

    @torch.no_grad()
    def read(self, x: Tensor, sentences: Sequence[str], max_new_tokens: int = 64) -> list[tuple[str, dict]]:
        """For each trial its text, and probabilities: of the sentences ("likelihood"), of the classes ("head")."""
        tokens = self.encode(x)
        texts, scores = self._decode(tokens, sentences, max_new_tokens)
        of = self._probabilities(tokens, scores)
        if self.mirror is not None:
            tokens = self.encode(self.mirror.both(x))
            of_mirrored = self._probabilities(tokens, self._decode(tokens, sentences, 1)[1])
            of = {name: (p + of_mirrored[name][:, self.mirror.labels.to(p.device)]) / 2 for name, p in of.items()}
        said = {name: p.tolist() for name, p in of.items()}
        return [(text, {name: said[name][k] for name in said}) for k, text in enumerate(texts)]

    def probabilities(self, x: Tensor, sentences: Sequence[str]) -> dict[str, Tensor]:
        """(B, K) by read-out, as `read` gives them for a trial without its mirror image; gradients reach `x`."""
        tokens = self.encode(x)
        _, _, first, states = self._read_prompt(tokens)
        return self._probabilities(tokens, self._score(first, states, sentences))

    def _read_prompt(self, tokens: Tensor) -> tuple[Tensor, int, Tensor, list]:
        """The prompt (B, n + S, H), the length of what stands before it, logits behind it (B, V), keys and values."""
        cache, length = self._prefix_cache(len(tokens))
        prompt = self._embed_prompt(tokens)
        out = self.language_model(inputs_embeds=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return prompt, length, out.logits[:, -1].float(), keys_and_values(out.past_key_values)

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, K), of the head."""
        return self.head(self.encode(x))

    def _probabilities(self, tokens: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """(B, K) by read-out, from the tokens and the sentences' scores."""
        of = {"likelihood": scores.softmax(dim=-1)}
        return of if self.head is None else of | {"head": self.head(tokens).float().softmax(dim=-1)}

    @torch.no_grad()
    def decode(self, x: Tensor, sentences: Sequence[str], max_new_tokens: int = 64) -> tuple[list[str], Tensor]:
        """Greedy text, and how likely each of the given sentences is.

        Returns the texts, and (B, K) scores: mean log-probability per token of each sentence with its end token.
        """
        return self._decode(self.encode(x), sentences, max_new_tokens)

    def _decode(self, tokens: Tensor, sentences: Sequence[str], max_new_tokens: int) -> tuple[list[str], Tensor]:
        prompt, length, first, states = self._read_prompt(tokens)
        return self._greedy(prompt, length, states, max_new_tokens), self._score(first, states, sentences)

    def _greedy(self, prompt: Tensor, length: int, states: list, max_new_tokens: int) -> list[str]:
        """transformers' own `generate`, from the keys and values of all but the prompt's last token."""
        cache = DynamicCache([(k[:, :, :-1], v[:, :, :-1]) for k, v in states])
        prefix = prompt.new_zeros(len(prompt), length, prompt.shape[-1])  # cached, so only its length matters
        whole = torch.cat([prefix, prompt], dim=1)
        seen = torch.ones(whole.shape[:2], dtype=torch.long, device=whole.device)
        eos = dict.fromkeys(("eos_token_id", "pad_token_id"), self.tokenizer.eos_token_id)
        greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, **eos)
        how = {"past_key_values": cache, "attention_mask": seen, "generation_config": greedy}
        ids = self.language_model.generate(inputs_embeds=whole, **how)  # (B, new tokens)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _score(self, first: Tensor, states: list, sentences: Sequence[str]) -> Tensor:
        """All sentences of some trials as one batch, over the keys and values of the prompt.

        Some: as many as keep the logits of a vocabulary of 32,000 under half a gigabyte.
        """
        eos, k = self.tokenizer.eos_token_id, len(sentences)
        said = [self.tokenizer(sentence, add_special_tokens=False).input_ids for sentence in sentences]
        rows = [torch.tensor([*ids, eos], device=first.device) for ids in said]
        ids = pad_sequence(rows, batch_first=True, padding_value=eos)  # (K, T)
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
        seen = torch.ones(k, states[0][0].shape[2], dtype=torch.bool, device=first.device)
        attention = torch.cat([seen, mask[:, :-1]], dim=1).long()  # (K, length + T − 1)
        scores = []
        for trials in torch.arange(len(first), device=first.device).split(max(1, 64 // k)):
            n = len(trials)
            cache = DynamicCache([tuple(t[trials].repeat_interleave(k, dim=0) for t in layer) for layer in states])
            how = {"past_key_values": cache, "use_cache": True, "attention_mask": attention.repeat(n, 1)}
            out = self.language_model(input_ids=ids[:, :-1].repeat(n, 1), **how)
            logits = torch.cat([first[trials].repeat_interleave(k, dim=0)[:, None], out.logits.float()], dim=1)
            loss = F.cross_entropy(logits.transpose(1, 2), ids.repeat(n, 1), reduction="none")  # (n·K, T)
            scores.append(-(loss.view(n, k, -1) * mask).sum(dim=-1) / mask.sum(dim=-1))
        return torch.cat(scores)

    # ------------------------------------------------------------ parts

    @torch.no_grad()
    def read_prefix(self) -> None:
        """Keep the keys and values of the text before the EEG, as the weights are now."""
        self._prefix = self._prefix_states()

    def _embed(self, ids: Tensor) -> Tensor:
        return self.language_model.get_input_embeddings()(ids)

    def _embed_prompt(self, tokens: Tensor) -> Tensor:
        """EEG tokens and the text behind them, (B, n + S, H), in the language model's own precision."""
        after = self._embed(self.after_ids).expand(len(tokens), -1, -1)
        return torch.cat([self.projection(tokens).to(after.dtype), after], dim=1)

    def _prefix_cache(self, batch: int) -> tuple[DynamicCache, int]:
        """Keys and values of the text before the EEG, for a batch, and its length.

        While LoRA is being trained they carry its gradient, so they are made anew for every batch, of one row.
        """
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.lora_parameters()):
            states = self._prefix_states()
        elif self._prefix is None:
            raise RuntimeError("call read_prefix() first: it reads the text before the EEG once")
        else:
            states = self._prefix
        expanded = [tuple(t.expand(batch, -1, -1, -1) for t in layer) for layer in states]
        return DynamicCache(expanded), self.before_ids.shape[1]

    def _prefix_states(self) -> list:
        out = self.language_model(input_ids=self.before_ids, use_cache=True, logits_to_keep=1)
        return keys_and_values(out.past_key_values)


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Per layer (B, heads, length, width); a `DynamicCache` made of them appends without changing them."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def split_prompt(tokenizer, system_prompt: str, user_prompt: str) -> tuple[list[int], list[int]]:
    """Token ids of the chat before and after the EEG, by the tokenizer's own chat template.

    The chat is tokenised whole, with a token of its own where the EEG stands, so that neither part changes by being
    cut off; that token then goes, and no placeholder text is left. Where the template has no system role, the system
    prompt stands at the beginning of the user's turn.
    Raises UserError if the tokenizer has no chat template, or one that loses the user's turn.
    """
    llm = f"--llm {tokenizer.name_or_path}"
    if not tokenizer.chat_template:
        raise UserError(f"{llm}: no chat template; use a chat model such as TinyLlama-Chat")
    if user_prompt.count(EEG_PLACE) != 1:
        raise ValueError(f"the user prompt must hold {EEG_PLACE} once")
    mark = "<|eeg-place|>"
    user = user_prompt.replace(EEG_PLACE, mark)
    text = _apply(tokenizer, [{"role": "system", "content": system_prompt}, {"role": "user", "content": user}])
    if text is None or system_prompt not in text:
        text = _apply(tokenizer, [{"role": "user", "content": f"{system_prompt}\n\n{user}"}])
    if text is None or text.count(mark) != 1:
        raise UserError(f"{llm}: its chat template does not keep a user's turn as it is written")
    marked = copy.deepcopy(tokenizer)
    marked.add_special_tokens({"additional_special_tokens": [mark]})
    with loading(f"{llm}: its tokenizer", "name another chat model", "asked"):
        ids = marked(text, add_special_tokens=False).input_ids
    place = ids.index(marked.convert_tokens_to_ids(mark))
    return ids[:place], ids[place + 1 :]


def _apply(tokenizer, chat: list[dict]) -> str | None:
    """The chat as text; None where the template refuses it, or fails in any other way.

    A template comes from a stranger. Jinja's sandbox lets it touch nothing, but it may loop for ever and multiply.
    Raises UserError for a template that is too long, gives too much, or asks for too much time or memory.
    """
    what = f"--llm {tokenizer.name_or_path}: its chat template"
    if len(str(tokenizer.chat_template)) > MAX_TEMPLATE:
        raise UserError(f"{what} has more than {MAX_TEMPLATE} characters; use another language model")
    try:
        with bounded(what, TEMPLATE_SECONDS, TEMPLATE_BYTES):
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            text.encode()  # half a character, which no tokenizer reads, is an error here
    except UserError:
        raise
    except Exception:
        return None
    if len(text) > MAX_ADDED + 2 * sum(len(turn["content"]) for turn in chat):
        raise UserError(f"{what} makes {len(text)} characters of a short chat; use another language model")
    return text


# ---------------------------------------------------------------- loading


def load_language_model(name: str, device: torch.device, quantize: bool, dtype: torch.dtype) -> tuple:
    """A causal language model and its tokenizer, from a local folder or the hub.

    name : str. A hub address, or a folder laid out like `TinyLlama/TinyLlama-1.1B-Chat-v1.0` (nothing is downloaded).
    quantize : bool. 4-bit NF4 with double quantisation (bitsandbytes).
    dtype : torch.dtype. Of the weights, and of the arithmetic on quantised ones.
    Raises UserError if the model cannot be loaded.
    """
    safe = {"local_files_only": fetch_nothing(name, "config.json", "--llm"), "trust_remote_code": False}
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    four_bits = transformers.BitsAndBytesConfig(load_in_4bit=True, **nf4)
    hint = "give a local folder or a hub address, and --no_quantize where bitsandbytes does not support the device"
    refuse_code()
    with loading(f"--llm {name}", hint):
        tokenizer = load_tokenizer(name, **safe)
    how = {"dtype": dtype, "device_map": {"": device}, "quantization_config": four_bits if quantize else None}
    model = load_whole(transformers.AutoModelForCausalLM, name, "--llm", hint, **safe, **how)
    # a repository's own settings of generation (penalties, sampling) would change what is decoded
    end = tokenizer.eos_token_id
    model.generation_config = transformers.GenerationConfig(eos_token_id=end, pad_token_id=end)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Where the CPU can, bitsandbytes repacks a layer when it first sees evaluation and computes in bfloat16
            # from then on, training included; a run that evaluated and one that resumed would then differ.
            module.support_avx512bf16_for_cpu = False
    model = model.eval().requires_grad_(False)
    with loading(f"--llm {name}", hint):
        check_fits(model, tokenizer)
    return model, tokenizer


@torch.no_grad()
def check_fits(model, tokenizer) -> None:
    """Let a language model read one token: ValueError where it cannot, or its tokenizer speaks of other tokens."""
    n_tokens = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= n_tokens or not isinstance(tokenizer.eos_token_id, int):
        tokens = f"its tokenizer has tokens up to {highest}, the model {n_tokens}"
        raise ValueError(f"{tokens}, the end token is {tokenizer.eos_token_id}")
    logits = model(input_ids=torch.tensor([[tokenizer.eos_token_id]], device=model.device)).logits
    if not torch.isfinite(logits).all():
        raise ValueError("it gives NaN or infinity")


def lora_targets(name: str, asked: Sequence[str] | None) -> list[str]:
    """The linear layers of a language model that get LoRA, found before its weights are loaded.

    name : str. As for `load_language_model`; its config.json alone is read.
    asked : sequence of str, optional. Names, or ends of names, of linear layers. Default: q_proj and v_proj; where a
        model lacks these names, all linear layers inside its attention.
    Raises UserError if a name that is asked for is no linear layer's, or there is no attention to choose from.
    """
    safe = {"local_files_only": fetch_nothing(name, "config.json", "--llm"), "trust_remote_code": False}
    refuse_code()
    what, hint = f"--llm {name}", "give a local folder or a hub address"
    with loading(what, hint), building(what, Path(name)), torch.device("meta"):
        check_config(Path(name, "config.json"))
        config = transformers.AutoConfig.from_pretrained(name, **safe)
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    layers = [f".{path}" for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]

    def lacking(names: Sequence[str]) -> list[str]:
        return [target for target in names if not any(layer.endswith(f".{target}") for layer in layers)]

    if not lacking(asked or LORA_TARGETS):
        return list(asked or LORA_TARGETS)
    known = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    if asked:
        missing = ", ".join(lacking(asked))
        raise UserError(f"--lora_targets: --llm {name} has no linear layer {missing}; it has {known}")
    inside = [layer for layer in layers if any(part in layer.lower() for part in ("attn.", "attention."))]
    elsewhere = {layer.rpartition(".")[2] for layer in set(layers) - set(inside)}
    parts = [layer.split(".") for layer in inside]  # a name that other layers have too keeps its parent's
    found = list(dict.fromkeys(".".join(part[-2:]) if part[-1] in elsewhere else part[-1] for part in parts))
    if not found:
        raise UserError(f"--lora_targets: --llm {name} has no attention; name some of its linear layers: {known}")
    lacks = ", ".join(lacking(LORA_TARGETS))
    print(f"notice: --llm {name} has no {lacks}; LoRA goes to its attention: {', '.join(found)}")
    return found


def add_lora(
    language_model, r: int = LORA_R, alpha: float = LORA_ALPHA, targets: Sequence[str] = LORA_TARGETS
) -> peft.PeftModel:
    """Wrap a plain language model in LoRA; the defaults are the seed's, 1,126,400 parameters for TinyLlama.

    r, alpha : int, float. Rank and scale.
    targets : sequence of str. Names of the linear layers.
    Raises UserError if the language model has no such layers.
    """
    if isinstance(language_model, peft.PeftModel):
        raise ValueError("the language model has an adapter already; an adapter around an adapter trains nothing right")
    shape = {"r": r, "lora_alpha": alpha, "lora_dropout": LORA_DROPOUT, "task_type": "CAUSAL_LM"}
    try:
        model = peft.get_peft_model(language_model, peft.LoraConfig(**shape, target_modules=list(targets)))
    except ValueError as error:
        raise UserError(f"--lora_targets {' '.join(targets)}: {str(error).splitlines()[0]}") from None
    model.peft_config["default"].target_modules = sorted(targets)  # peft's set is written in another order every time
    return model


# what plain LoRA has in adapter_config.json: anything else computes something else (fan_in_fan_out is the layers' own)
PLAIN_LORA = {"peft_type": "LORA", "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}
PLAIN_LORA |= dict.fromkeys(("use_rslora", "use_dora", "use_qalora"), False)
PLAIN_LORA |= dict.fromkeys(("modules_to_save", "layers_to_transform", "layer_replication", "target_parameters"))
PLAIN_LORA |= dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens"))


def read_lora_settings(folder: Path) -> dict:
    """`r`, `alpha` and `targets` of an adapter folder, for `add_lora`.

    Raises UserError if the folder is missing, its adapter_config.json is damaged, or it is another kind of adapter.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a LoRA folder (it has no adapter_config.json); --lora_dir names one")
    config = read_json(file)
    for name, plain in PLAIN_LORA.items():
        if config.get(name, plain) not in (plain, None):
            raise UserError(f"{file} has {name} = {str(config[name])[:60]}; only plain LoRA ({name} = {plain}) is read")
    with loading(f"{file} is damaged", "expected r, lora_alpha and target_modules"):
        targets, r, alpha = config["target_modules"], config["r"], float(config["lora_alpha"])
        if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
            raise ValueError("target_modules is no list of names")
        if type(r) is not int or not 0 < r <= 4096 or not 0 < alpha < 1e6:
            raise ValueError(f"r is {r!r} and lora_alpha {alpha!r}")
    return {"r": r, "alpha": alpha, "targets": sorted(targets)}


def lora_facts(model: peft.PeftModel) -> dict:
    """What a checkpoint keeps of the adapter trained with it: rank, scale, layers, and a digest of its weights."""
    config, digest = model.peft_config["default"], _digest(peft.get_peft_model_state_dict(model))
    settings = {"r": config.r, "alpha": float(config.lora_alpha), "targets": sorted(config.target_modules)}
    return settings | {"digest": digest}


def load_lora(model: peft.PeftModel, folder: str | Path, facts: Mapping | None = None) -> None:
    """Put an adapter's weights from disk into a model that `add_lora` made.

    facts : mapping, optional. `lora_facts` of the adapter that it has to be.
    Raises UserError if the folder is missing, is no adapter, one of another shape, or another one than `facts` says.
    """
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"{folder} is not a LoRA folder (it has no adapter_model.safetensors); --lora_dir names one")
    with loading(str(file), "it is damaged; --lora_dir names another"):
        given = peft.load_peft_weights(str(folder), device="cpu")
    shapes = {key: tensor.shape for key, tensor in given.items()}
    wanted = {key: tensor.shape for key, tensor in peft.get_peft_model_state_dict(model).items()}
    wrong = sorted(key for key in shapes.keys() | wanted.keys() if shapes.get(key) != wanted.get(key))
    if wrong:
        raise UserError(f"{folder} is an adapter for another model: {wrong[0]} and {len(wrong) - 1} more differ")
    peft.set_peft_model_state_dict(model, given)
    if facts is not None:
        own = lora_facts(model)
        faults = [f"{k} {own[k]!r} and not {facts.get(k)!r}" for k in own if k != "digest" and own[k] != facts.get(k)]
        if _digest(given) != facts.get("digest"):
            faults.append("other weights: damaged, or of another epoch")
        if faults:
            what = f"{folder} is not the adapter that was saved with the projection"
            raise UserError(f"{what}: it has {'; '.join(faults)}")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + as_bytes(tensor))
    return digest.hexdigest()

"""A tiny chat model, for whoever has no hub: a small Llama and its tokenizer, trained on a dataset's own sentences.

It is no published model. It knows the sentences that it was trained on and nothing else, so its folder says which.
"""

import hashlib
import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils.errors import UserError
from utils.files import read_json
from utils.paths import written_whole
from utils.progress import progress

TINY = "tiny"  # --llm tiny
STEPS = 600  # of 16 chats
Conversation = tuple[
    str, str, Sequence[str], Sequence[str]
]  # system prompt, user prompt with "{eeg}", hint words, answers
SENTENCES = "sentences.json"  # in its folder: what it was trained to say
# TinyLlama-Chat's format: a role, a newline, the text, the end token
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
FILLER = "signal power over time seconds band rhythm scalp electrode trial phase wave noise slow fast".split()


def write_language_model(
    folder: Path, conversations: Sequence[Conversation], seed: int = 0, steps: int = STEPS
) -> None:
    """A small Llama with tokenizer and chat template, in the layout of `TinyLlama/TinyLlama-1.1B-Chat-v1.0`.

    It is trained on text alone: chats in which the user's turn hints at something in words and the assistant answers in
    a sentence. It never sees EEG.

    folder : Path
    conversations : sequence of Conversation
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
        pairs = [_chat(rng, tokenizer, *conversations[rng.integers(len(conversations))]) for _ in range(16)]
        ids = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in pairs], batch_first=True)  # (16, T)
        wanted = [torch.tensor([-100] * len(prompt) + answer) for prompt, answer in pairs]
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in wanted], batch_first=True)
        wanted = pad_sequence(wanted, batch_first=True, padding_value=-100)
        logits = model(input_ids=ids, attention_mask=mask).logits
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
        said = sorted({answer for *_, answers in conversations for answer in answers})
        (unfinished / SENTENCES).write_text(json.dumps({"sentences": said}, indent=1) + "\n", encoding="utf-8")


def known_sentences(folder: str | Path) -> set[str] | None:
    """What a tiny chat model was trained to say; None of any other model."""
    path = Path(folder) / SENTENCES
    if not path.is_file():
        return None
    said = read_json(path).get("sentences")
    if not isinstance(said, list):
        raise UserError(f"{path} is damaged: it lists no sentences; make the model anew")
    return set(map(str, said))


def language_model_for(llm: str, conversations: Sequence[Conversation], cache_dir: Path) -> str:
    """The chat model that a run reads: `llm` itself, or a tiny one that was trained on a dataset's own sentences.

    The latter for --llm tiny, and where `llm` is a tiny model of this project that never read these sentences: its
    text would stay near chance. It is trained once, in about a minute, and kept below `cache_dir`.
    """
    sentences = {text for *_, answers in conversations for text in answers}
    known = None if llm == TINY else known_sentences(llm)
    if llm != TINY and (known is None or sentences <= known):
        return llm
    digest = hashlib.sha256(json.dumps([conversations, STEPS]).encode()).hexdigest()
    folder = cache_dir / f"tiny_llm-{digest[:16]}"
    why = "--llm tiny" if llm == TINY else f"{llm} is a tiny chat model that never read the sentences of this dataset"
    if folder.is_dir():
        print(f"{why}: {folder}, which was trained on them, is taken")
        return str(folder)
    print(f"{why}: a tiny one is trained on them now and kept in {folder}; it knows nothing else")
    write_language_model(folder, conversations, steps=STEPS)
    return str(folder)


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
    how = {"initial_alphabet": list(string.printable), "show_progress": False}
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=1024, special_tokens=["<unk>", "<s>", "</s>"], **how))
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    how = {"chat_template": CHAT_TEMPLATE, "model_max_length": 512}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens, **how)

"""Peak GPU memory at the published sizes, with random weights; skips without a GPU."""

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GIB = 2**30


@pytest.fixture(scope="module")
def tinyllama(demo, tmp_path_factory):
    """A folder with TinyLlama-1.1B's configuration, random half-precision weights and the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("TinyLlama-1.1B")
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("cuda"):
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    for path in demo.llm.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    for path in demo.llm.glob("chat_template*"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert AutoConfig.from_pretrained(folder).hidden_size == 2048
    torch.cuda.empty_cache()
    return folder


def test_text_training_fits_into_8_gb(tinyllama, capsys):
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    language_model, tokenizer = load_language_model(str(tinyllama), device, True, torch.float16)
    model = EEGLanguageModel(
        add_lora(language_model),
        tokenizer,
        "You read brain recordings.",
        "A recording: {eeg} What was it?",
        EEGProjection(2048),
    ).to(device)
    optimizer = torch.optim.AdamW(model.set_phase(joint=True), lr=1e-4)
    scaler = torch.amp.GradScaler()
    for _ in range(3):  # batch 4, hemisphere tokens, long targets
        tokens = torch.randn(4, 28, 200, device=device)
        ids = torch.randint(3, 500, (4, 64), device=device)
        with torch.autocast("cuda", torch.float16):
            loss = model(tokens, ids, torch.ones_like(ids, dtype=torch.bool))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    peak = torch.cuda.max_memory_allocated() / GIB
    with capsys.disabled():
        print(f"\nEEG→text training, TinyLlama-1.1B NF4, batch 4: peak {peak:.2f} GiB")
    assert torch.isfinite(loss) and peak < 8

"""Peak GPU memory at the published sizes, with random weights; skips without a GPU."""

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from datasets.description import load_description
from demo.tiny_models import byte_tokenizer
from models.CSBrain import CSBrain
from models.eeg_clip_mapper import EEGCLIPMapper, MapperBatch, mapper_loss
from models.eeg_llm import EEGLanguageModel, EEGProjection, add_lora, load_language_model
from models.image_generator import EEGImageGenerator
from stages.tokens import reducer_for
from utils.device import free_gpu_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GIB = 2**30


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / GIB


@pytest.fixture(autouse=True)
def fresh_peak():
    assert free_gpu_memory(torch.device("cuda")) < 256
    torch.cuda.reset_peak_memory_stats()


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """A folder with Stable Diffusion 1.5's configurations and random half-precision weights."""
    folder = tmp_path_factory.mktemp("sd15")
    tokenizer = byte_tokenizer()
    torch.set_default_dtype(torch.float16)
    try:
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            ),
            text_encoder=CLIPTextModel(CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            scheduler=DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1),
            feature_extractor=CLIPImageProcessorPil(),
            safety_checker=StableDiffusionSafetyChecker(CLIPConfig(  # the published repository has it
                projection_dim=768, vision_config=dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                                       num_attention_heads=16, patch_size=14, projection_dim=768),
            )),
        )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    assert sum(p.numel() for p in pipeline.unet.parameters()) == 859_520_964  # the published UNet's
    pipeline.save_pretrained(folder)
    return folder


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
    trained, *_ = model.set_phase(joint=True)
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
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


def test_mapper_training_fits_into_6_gb(capsys):
    device = torch.device("cuda")
    mapper = EEGCLIPMapper().to(device)
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=1e-4)
    prototypes, text_states = torch.randn(10, 768, device=device), torch.randn(10, 77, 768, device=device)
    weights = {"cls": 5.0, "contrastive": 2.0, "cos": 1.0, "mse": 0.1}
    scaler = torch.amp.GradScaler()
    for _ in range(3):  # batch 16
        with torch.autocast("cuda", torch.float16):
            outputs = mapper(torch.randn(16, 20, 200, device=device))
        label = torch.randint(10, (16,), device=device)
        batch = MapperBatch(*(output.float() for output in outputs), label, prototypes, text_states)
        loss, _ = mapper_loss(batch, weights)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    with capsys.disabled():
        print(f"\nmapper training, batch 16: peak {peak_gib():.2f} GiB")
    assert torch.isfinite(loss) and peak_gib() < 6


def decode_once(tinyllama, device) -> None:
    """All EEG models of both ways at once, one batch of 16."""
    montage = load_description("VI").montage
    encoder = CSBrain(brain_regions=montage.brain_regions, sorted_indices=montage.sorted_indices).to(device).eval()
    language_model, tokenizer = load_language_model(str(tinyllama), device, True, torch.float16)
    model = EEGLanguageModel(
        add_lora(language_model), tokenizer, "You read brain recordings.", "A recording: {eeg} What was it?",
        EEGProjection(2048), encoder, reducer_for(encoder, montage, "region"),
    ).to(device).eval()  # fmt: skip
    mapper = EEGCLIPMapper().to(device).eval()
    with torch.no_grad(), torch.autocast("cuda", torch.float16):
        x = torch.randn(16, 32, 4, 200, device=device)
        model.read_prefix()
        model.decode(x, ["The person imagined a dog.", "The person imagined a bird."], max_new_tokens=32)
        mapper(model.encode(x))


def test_eeg_inference_fits_into_2_gb(tinyllama, capsys):
    decode_once(tinyllama, torch.device("cuda"))
    with capsys.disabled():
        print(f"\nEEG inference, all models, batch 16: peak {peak_gib():.2f} GiB")
    assert peak_gib() < 2


def test_stable_diffusion_fits_into_4_gb(stable_diffusion, capsys):
    EEGImageGenerator(str(stable_diffusion), torch.device("cuda"), steps=3).generate("a photo of a dog", 0)
    with capsys.disabled():
        print(f"\nStable Diffusion 1.5, fp16, 512 × 512: peak {peak_gib():.2f} GiB")
    assert peak_gib() < 4


def test_end_to_end_fits_into_8_gb_and_the_stages_do_not_share(tinyllama, stable_diffusion, capsys):
    device = torch.device("cuda")
    decode_once(tinyllama, device)
    assert free_gpu_memory(device) < 256  # MiB
    EEGImageGenerator(str(stable_diffusion), device, steps=3).generate("a photo of a dog", 0)
    with capsys.disabled():
        print(f"\nend to end: peak {peak_gib():.2f} GiB")
    assert peak_gib() < 8

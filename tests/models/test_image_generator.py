import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from datasets.description import load_description
from demo.drawings import drawing
from demo.tiny_models import byte_tokenizer
from models.image_generator import (
    STRIDE,
    Amused,
    Conditioning,
    EEGImageGenerator,
    StableDiffusion,
    StableDiffusionXL,
    load_image_model,
)
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["stable-diffusion", "amused"])
def generator(request, vi_pth):
    return EEGImageGenerator(str(vi_pth / request.param), CPU, image_size=64)


@pytest.fixture(scope="module")
def means():
    """Mean drawing of every class."""
    names = [*load_description("BCICIV2a").classes, *load_description("VI").classes]
    return {name: np.mean([np.asarray(drawing(name, np.random.default_rng(seed)), float) for seed in range(40)], axis=0)
            for name in names}  # fmt: skip


@pytest.mark.parametrize("dataset", ["BCICIV2a", "VI"])
def test_the_shipped_models_draw_the_class_they_are_asked_for(generator, means, dataset):
    """The nearest class of the data set by mean drawing, for most of three seeds a class."""
    if isinstance(generator.family, Amused) and dataset == "BCICIV2a":
        pytest.skip("the tiny aMUSEd knows the classes of Visual Imagery")
    description = load_description(dataset)
    right = 0
    for label, name in enumerate(description.classes):
        for seed in range(3):
            picture = np.asarray(generator.generate(description.image_prompts[label], seed), float)
            distance = {other: np.square(picture - means[other]).mean() for other in description.classes}
            right += min(distance, key=distance.get) == name
            assert picture.std() > 15  # a drawing and not a blank
    assert right >= 0.9 * 3 * len(description.classes)


def test_a_picture_depends_on_conditioning_and_seed_only(generator):
    prompt = load_description("VI").image_prompts[0]
    first = np.asarray(generator.generate(prompt, 7))
    other = np.asarray(generator.generate(prompt, 8))
    again = np.asarray(generator.generate(prompt, 7))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_picture_of_a_batch_is_what_it_is_alone(generator, capsys):
    """Of aMUSEd, whose sampler would draw others, there are no batches."""
    prompts = [load_description("VI").image_prompts[label] for label in range(4)]
    told = [generator.embed(prompt) for prompt in prompts]
    alone = [np.asarray(generator.generate(one, seed), int) for seed, one in enumerate(told)]
    if isinstance(generator.family, Amused):
        name = generator.name
        assert EEGImageGenerator(name, CPU, steps=1, image_size=64, batch_size=4).at_once == 1
        assert f"--image_batch_size 4: {name} draws one picture after the other" in capsys.readouterr().out
        return
    together = [np.asarray(picture, int) for picture in generator.draw(told, range(4))]
    assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) <= 2
    assert np.abs(alone[0] - alone[1]).mean() > 2


def test_a_prompt_and_its_own_embedding_give_what_the_plain_pipeline_gives(generator):
    """Against diffusers' own call with the prompt as text."""
    prompt = load_description("VI").image_prompts[3]
    plain = generator.pipeline(
        prompt, num_inference_steps=generator.steps, guidance_scale=generator.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(plain), np.asarray(generator.generate(prompt, 5)))
    assert np.array_equal(np.asarray(plain), np.asarray(generator.generate(generator.embed(prompt), 5)))


def test_states_and_for_amused_the_pooled_vector_reach_the_image(generator):
    own = generator.embed("a photo of a cup of coffee")
    plain = np.asarray(generator.generate(own, 3))
    other = generator.embed("a photo of a wooden chair")
    assert not np.array_equal(plain, np.asarray(generator.generate(Conditioning(other.states, own.pooled), 3)))
    pooled_only = np.asarray(generator.generate(Conditioning(own.states, other.pooled), 3))
    assert np.array_equal(plain, pooled_only) == (not isinstance(generator.family, Amused))


def test_a_blend_ends_where_its_ends_are(generator):
    a, b = generator.embed("a circle"), generator.embed("a square")
    assert torch.equal(a.blend(b, 0.0).states, a.states) and torch.equal(a.blend(b, 1.0).states, b.states)
    assert torch.allclose(a.blend(b, 0.5).states, (a.states + b.states) / 2, atol=1e-6)  # rounding near zero
    if a.pooled is not None:
        assert torch.allclose(a.blend(b, 0.25).pooled, 0.75 * a.pooled + 0.25 * b.pooled, atol=1e-6)
    with pytest.raises(UserError, match="this image model reads 768"):
        generator.generate(Conditioning(torch.zeros(1, 77, 8), torch.zeros(1, 8)), 0)


def test_schedulers_steps_and_guidance_are_the_published_ones(generator):
    if isinstance(generator.family, Amused):
        assert type(generator.pipeline.scheduler).__name__ == "AmusedScheduler"
        assert (generator.steps, generator.guidance_scale) == (12, 10)
    else:
        assert type(generator.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
        assert generator.pipeline.scheduler.config.algorithm_type == "dpmsolver++"
        assert (generator.steps, generator.guidance_scale) == (25, 7.5)


# ---------------------------------------------------------------- what is no picture


@pytest.fixture
def small(vi_pth):
    return EEGImageGenerator(str(vi_pth / "stable-diffusion"), CPU, steps=2, image_size=64)


def flag(generator, monkeypatch, unsafe):
    """Let the safety checker blacken what is drawn from the seeds that `unsafe` says; gives the drawn seeds."""
    seeds, kind = [], type(generator.pipeline)
    draw = kind.__call__

    def checked(*inputs, generator, **settings):
        drawn = draw(*inputs, generator=generator, **settings)
        of_call = [one.initial_seed() for one in (generator if isinstance(generator, list) else [generator])]
        drawn.nsfw_content_detected = [unsafe(seed) for seed in of_call]
        for picture, black in zip(drawn.images, drawn.nsfw_content_detected, strict=True):
            picture[:] *= not black
        seeds.extend(of_call)
        return drawn

    monkeypatch.setattr(kind, "__call__", checked)
    return seeds


def test_a_blackened_picture_is_drawn_again_from_another_seed(small, monkeypatch, capsys):
    plain = small.generate("a dog", 5 + 2 * STRIDE)
    seeds = flag(small, monkeypatch, lambda seed: seed < 5 + 2 * STRIDE)
    drawn = small.generate("a dog", 5)
    assert seeds == [5, 5 + STRIDE, 5 + 2 * STRIDE] and np.array_equal(np.asarray(drawn), np.asarray(plain))
    assert "fault" not in drawn.info and drawn.info["redrawn"] == f"from seed {5 + 2 * STRIDE}"
    assert "safety checker" in capsys.readouterr().out


def test_of_a_batch_only_what_is_none_is_drawn_again(small, monkeypatch):
    told = [small.embed("a dog")] * 3
    seeds = flag(small, monkeypatch, lambda seed: seed == 1)
    pictures = small.draw(told, [0, 1, 2])
    assert seeds == [0, 1, 2, 1 + STRIDE] and not any("fault" in picture.info for picture in pictures)
    assert [picture.info.get("redrawn") for picture in pictures] == [None, f"from seed {1 + STRIDE}", None]


def test_what_stays_black_says_why(small, monkeypatch):
    seeds = flag(small, monkeypatch, lambda seed: True)
    drawn = small.generate("a dog", 2**63 - 1)
    assert drawn.info["fault"] == "blackened by the safety checker" and "redrawn" not in drawn.info
    assert len(set(seeds)) == 4 and max(seeds) < 2**63


def break_vae(generator, factor):
    """Finite weights, and activations `factor` times as large; the next layer is a norm, so the picture stays."""
    with torch.no_grad():
        generator.pipeline.vae.decoder.conv_in.weight *= factor
        generator.pipeline.vae.decoder.conv_in.bias *= factor


def test_a_picture_that_is_not_finite_is_named_and_not_drawn_thrice_in_vain(small, monkeypatch):
    break_vae(small, 1e30)
    tries = flag(small, monkeypatch, lambda seed: False)
    drawn = small.generate("a dog", 5)
    assert drawn.info["fault"] == "not finite" and np.asarray(drawn).max() == 0 and len(tries) == 1


def test_what_overflows_in_half_precision_is_drawn_again_in_float32(small, capsys):
    """As a GPU without room in half precision draws: on the CPU, with the arithmetic of half precision."""
    break_vae(small, 3e4)
    small.pipeline.to(torch.float16)
    wanted = small.pipeline.vae.decoder.conv_in.weight.clone()
    small.pipeline.to(torch.float32)
    in_float32 = small.generate("a dog", 5)  # of the same weights
    assert "fault" not in in_float32.info
    small.pipeline.to(torch.float16)
    small.dtype = torch.float16
    del small.empty
    drawn = small.generate(small.embed("a dog"), 5)
    assert drawn.info == {"redrawn": "in float32"} and "not finite; it was drawn again" in capsys.readouterr().out
    assert np.abs(np.asarray(drawn, int) - np.asarray(in_float32, int)).mean() < 3  # states are rounded to half
    assert small.dtype == torch.float16 and torch.equal(small.pipeline.vae.decoder.conv_in.weight, wanted)


def test_a_picture_of_one_colour_is_none(small, monkeypatch):
    flat = SimpleNamespace(images=np.full((1, 64, 64, 3), 0.5))
    monkeypatch.setattr(type(small.pipeline), "__call__", lambda *_, **__: flat)
    assert small.generate("a dog", 5).info["fault"] == "of one colour"


def test_a_small_model_draws_at_its_own_size_and_is_enlarged(vi_pth):
    large = EEGImageGenerator(str(vi_pth / "stable-diffusion"), CPU, steps=1, image_size=512)
    assert large.drawn_size == 64 and large.generate("anything", 0).size == (512, 512)


@pytest.mark.parametrize("name", ["empty", "no/such_model"])
def test_a_place_without_a_pipeline_is_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--image_model") as error:
        EEGImageGenerator(str(tmp_path / name) if name == "empty" else name, CPU)
    assert "\n" not in str(error.value)


def test_damaged_weights_and_unknown_families_are_one_line(vi_pth, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(vi_pth / "stable-diffusion", folder)
    index = folder / "model_index.json"
    for content, message in (
        (index.read_text().replace('"StableDiffusionPipeline"', '"FluxPipeline"'), "it is a FluxPipeline"),
        ("{", "cannot be loaded"),
    ):
        kept = index.read_text()
        index.write_text(content)
        with pytest.raises(UserError, match=message) as error:
            load_image_model(str(folder))
        assert "--image_model" in str(error.value) and "\n" not in str(error.value)
        index.write_text(kept)
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="--image_model") as error:
        load_image_model(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, family", [("stable-diffusion", StableDiffusion), ("amused", Amused)])
def test_a_model_for_reading_reads_alike_and_cannot_draw(vi_pth, name, family):
    reader, whole = load_image_model(str(vi_pth / name), for_reading=True), load_image_model(str(vi_pth / name))
    assert type(reader) is type(whole) is family
    assert getattr(reader.pipeline, family.backbone) is None and getattr(whole.pipeline, family.backbone) is not None
    with torch.no_grad():
        assert torch.equal(reader.read_prompt("a circle").states, whole.read_prompt("a circle").states)
        assert torch.equal(reader.pooled_target("a circle"), whole.pooled_target("a circle"))


# ---------------------------------------------------------------- Stable Diffusion XL


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory):
    """A folder with random weights in Stable Diffusion XL's layout."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()

    def text_encoder(kind):
        return kind(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, projection_dim=24, num_hidden_layers=3,
            num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        ))  # fmt: skip

    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 16), norm_num_groups=8, latent_channels=4, sample_size=32,
        ),
        text_encoder=text_encoder(CLIPTextModel), text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer, tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(16, 32), layers_per_block=1,
            norm_num_groups=8, attention_head_dim=(2, 4), cross_attention_dim=64, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8, transformer_layers_per_block=(1, 1),
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sdxl")
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("force_zeros", [True, False], ids=["as published", "with an empty prompt of its own"])
def test_stable_diffusion_xl_draws_what_diffusers_draws_from_a_class_prompt(tiny_sdxl, tmp_path, force_zeros):
    """Stable Diffusion XL's model_index.json may ask for zeros in place of an empty prompt; the published one does."""
    shutil.copytree(tiny_sdxl, tmp_path / "sdxl")
    index = tmp_path / "sdxl/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": force_zeros}))
    generator = EEGImageGenerator(str(tmp_path / "sdxl"), CPU, steps=3, image_size=32)
    assert type(generator.family) is StableDiffusionXL and generator.guidance_scale == 7.5
    prompts = load_description("VI").image_prompts
    plain = generator.pipeline(
        prompts[3], num_inference_steps=3, guidance_scale=7.5, height=32, width=32,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]  # fmt: skip
    drawn = generator.generate(prompts[3], 5)
    assert drawn.size == (32, 32) and np.array_equal(np.asarray(plain), np.asarray(drawn))
    assert np.array_equal(np.asarray(plain), np.asarray(generator.generate(generator.embed(prompts[3]), 5)))
    assert not np.array_equal(np.asarray(plain), np.asarray(generator.generate(prompts[4], 5)))
    assert not np.array_equal(np.asarray(plain), np.asarray(generator.generate(prompts[3], 6)))


def test_stable_diffusion_xl_reads_states_of_both_encoders_and_a_pooled_vector(tiny_sdxl):
    reader = load_image_model(str(tiny_sdxl), for_reading=True)
    assert reader.pipeline.unet is None
    with torch.no_grad():
        read = reader.read_prompt("a photo of a dog")
        assert read.states.shape == (1, 77, 64) and read.pooled.shape == (1, 24)
        assert torch.equal(reader.pooled_target("a photo of a dog"), read.pooled)
    with pytest.raises(UserError, match="width 64 and 768, this image model reads 64 and 24"):
        EEGImageGenerator(str(tiny_sdxl), CPU, steps=1, image_size=32).generate(
            Conditioning(read.states, torch.zeros(1, 768)), 0
        )


def test_a_sampler_is_refused_where_the_model_has_one_of_its_own(vi_pth):
    with pytest.raises(UserError, match="--scheduler pndm: .* has a sampler of its own"):
        EEGImageGenerator(str(vi_pth / "amused"), CPU, scheduler="pndm")

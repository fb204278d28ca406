import numpy as np
import pytest
import torch
from PIL import Image
from utils.drawing import drawing

from datasets.description import load_dataset
from models.image_generator import Conditioning, EEGImageGenerator
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["stable-diffusion", "amused"])
def generator(request, vi_pth):
    return EEGImageGenerator(str(vi_pth / request.param), CPU, image_size=64)


@pytest.fixture(scope="module")
def means():
    """Mean drawing of every class."""
    names = [*load_dataset("BCICIV2a")[0].classes, *load_dataset("VI")[0].classes]
    return {name: np.mean([np.asarray(drawing(name, np.random.default_rng(seed)), float) for seed in range(40)], axis=0)
            for name in names}  # fmt: skip


@pytest.mark.parametrize("dataset", ["BCICIV2a", "VI"])
def test_the_shipped_models_draw_the_class_they_are_asked_for(generator, means, dataset):
    """The nearest class of the data set by mean drawing, for most of three seeds a class."""
    if generator.is_amused and dataset == "BCICIV2a":
        pytest.skip("aMUSEd's stand-in knows the classes of Visual Imagery")
    description = load_dataset(dataset)[0]
    right = 0
    for label, name in enumerate(description.classes):
        for seed in range(3):
            picture = np.asarray(generator.generate(description.image_prompts[label], seed), float)
            distance = {other: np.square(picture - means[other]).mean() for other in description.classes}
            right += min(distance, key=distance.get) == name
            assert picture.std() > 15  # a drawing and not a blank
    assert right >= 0.9 * 3 * len(description.classes)


def test_a_picture_depends_on_conditioning_and_seed_only(generator):
    prompt = load_dataset("VI")[0].image_prompts[0]
    first = np.asarray(generator.generate(prompt, 7))
    other = np.asarray(generator.generate(prompt, 8))
    again = np.asarray(generator.generate(prompt, 7))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_prompt_and_its_own_embedding_give_what_the_plain_pipeline_gives(generator):
    """Against diffusers' own call with the prompt as text."""
    prompt = load_dataset("VI")[0].image_prompts[3]
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
    assert np.array_equal(plain, pooled_only) == (not generator.is_amused)


def test_a_blend_ends_where_its_ends_are(generator):
    a, b = generator.embed("a circle"), generator.embed("a square")
    assert torch.equal(a.blend(b, 0.0).states, a.states) and torch.equal(a.blend(b, 1.0).states, b.states)
    assert torch.allclose(a.blend(b, 0.5).states, (a.states + b.states) / 2)
    if a.pooled is not None:
        assert torch.allclose(a.blend(b, 0.25).pooled, 0.75 * a.pooled + 0.25 * b.pooled, atol=1e-6)
    with pytest.raises(UserError, match="have width 8, this image model reads 768"):
        generator.generate(Conditioning(torch.zeros(1, 77, 8), torch.zeros(1, 8)), 0)


def test_schedulers_steps_and_guidance_are_the_published_ones(generator):
    if generator.is_amused:
        assert type(generator.pipeline.scheduler).__name__ == "AmusedScheduler"
        assert (generator.steps, generator.guidance_scale) == (12, 10)
    else:
        assert type(generator.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
        assert generator.pipeline.scheduler.config.algorithm_type == "dpmsolver++"
        assert (generator.steps, generator.guidance_scale) == (25, 7.5)


def test_a_blackened_picture_is_said(vi_pth, capsys):
    from types import SimpleNamespace

    small = EEGImageGenerator(str(vi_pth / "stable-diffusion"), CPU, steps=1, image_size=64)
    original = small.pipeline
    black = SimpleNamespace(images=[Image.new("RGB", (64, 64))], nsfw_content_detected=[True])
    small.pipeline = type("Checked", (), {"__call__": lambda self, **inputs: black, "device": CPU,
                                          "encode_prompt": staticmethod(original.encode_prompt)})()  # fmt: skip
    small.generate("anything", 0)
    assert "safety checker" in capsys.readouterr().out


def test_a_small_model_draws_at_its_own_size_and_is_enlarged(vi_pth):
    large = EEGImageGenerator(str(vi_pth / "stable-diffusion"), CPU, steps=1, image_size=512)
    assert large.drawn_size == 64 and large.generate("anything", 0).size == (512, 512)


def test_a_folder_that_is_no_pipeline_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--image_model"):
        EEGImageGenerator(str(tmp_path), CPU)

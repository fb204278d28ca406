import numpy as np
import pytest
import torch

from datasets.bciciv2a_llm_dataset import DESCRIPTION
from models.image_generator import EEGImageGenerator
from tests.conftest import ROOT
from utils.drawing import drawing
from utils.errors import UserError


@pytest.fixture(scope="module")
def generator():
    return EEGImageGenerator(str(ROOT / "assets/stable-diffusion"), torch.device("cpu"), image_size=64)


def test_the_shipped_model_draws_the_class_it_is_asked_for(generator):
    """The nearest class by mean drawing, for three seeds a class."""
    means = [np.mean([np.asarray(drawing(name, np.random.default_rng(seed))) for seed in range(40)], axis=0)
             for name in DESCRIPTION.classes]  # fmt: skip
    for label in range(4):
        for seed in range(3):
            picture = np.asarray(generator.generate(DESCRIPTION.image_prompts[label], seed), float)
            nearest = int(np.argmin([np.square(picture - mean).mean() for mean in means]))
            assert nearest == label, (label, seed)
            assert picture.std() > 25  # a drawing and not a blank


def test_a_picture_depends_on_prompt_and_seed_only(generator):
    first = np.asarray(generator.generate(DESCRIPTION.image_prompts[0], 7))
    other = np.asarray(generator.generate(DESCRIPTION.image_prompts[0], 8))
    again = np.asarray(generator.generate(DESCRIPTION.image_prompts[0], 7))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_scheduler_is_dpm_solver_plus_plus(generator):
    assert type(generator.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert generator.pipeline.scheduler.config.algorithm_type == "dpmsolver++"
    assert (generator.steps, generator.guidance_scale) == (25, 7.5)


def test_a_small_model_draws_at_its_own_size_and_is_enlarged():
    large = EEGImageGenerator(str(ROOT / "assets/stable-diffusion"), torch.device("cpu"), steps=1, image_size=512)
    assert large.drawn_size == 64 and large.generate("anything", 0).size == (512, 512)


def test_a_folder_that_is_no_pipeline_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--image_model"):
        EEGImageGenerator(str(tmp_path), torch.device("cpu"))

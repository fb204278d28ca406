"""Pictures of seen images on a GPU: the same numbers as on the CPU; skips without one. Memory: `check.py`."""

import numpy as np
import pytest
import torch

from demo.tiny_models import complete_image_model, complete_ip_adapter
from models.guided_generator import Guidance, GuidedGenerator
from models.image_generator import read_prompts
from models.prior import DiffusionPrior
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_a_prior_and_a_picture_are_the_cpus(tmp_path):
    torch.manual_seed(0)
    prior, condition = DiffusionPrior(dim=64, condition_dim=64).eval(), torch.randn(3, 64)
    on_cpu = prior.sample(condition, [0, 1, 2], steps=5)
    on_gpu = prior.to(CUDA).sample(condition.to(CUDA), [0, 1, 2], steps=5).cpu()
    assert torch.allclose(on_cpu, on_gpu, atol=1e-3 * on_cpu.abs().max())

    complete_image_model(ROOT / "demo/assets/stable-diffusion-shapes", tmp_path / "sd")
    complete_ip_adapter(ROOT / "demo/assets/ip-adapter", tmp_path / "ip")
    embedding, drawn = torch.randn(768), []
    for device in (CPU, CUDA):
        told, empty = read_prompts(str(tmp_path / "sd"), [""], device)
        generator = GuidedGenerator(
            str(tmp_path / "sd"), device, empty, steps=4, image_size=64, ip_adapter=str(tmp_path / "ip"), width=768
        )
        drawn.append(np.asarray(generator.draw([Guidance(told[""], embedding)], [0])[0], float))
    assert np.abs(drawn[0] - drawn[1]).mean() < 6  # of 255: half precision there

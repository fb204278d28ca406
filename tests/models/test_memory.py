"""What lies on a GPU at once: arithmetic on bytes, of published sizes and of the shipped models."""

import pytest
import torch

from models.image_generator import EEGImageGenerator
from models.memory import GB, MARGIN, MEANS, Needs, choose_means, needs_of
from utils.errors import UserError

CPU = torch.device("cpu")
# as benchmarks/memory_of_pictures.py computes them: weights, the largest layer, a picture's activations
SD15 = Needs({"unet": 1.76e9, "vae": 0.17e9}, ("text_encoder", "unet", "vae"), 6e7, 0.19e9, 0.44e9)
SDXL = Needs({"unet": 5.8e9, "vae": 0.33e9}, ("text_encoder", "unet", "vae"), 7e7, 0.1e9, 0.87e9)


@pytest.mark.parametrize("needs, memory, chosen", [
    (SD15, 24, ("whole", 8)), (SD15, 4, ("whole", 7)), (SD15, 3.1, ("whole", 3)), (SD15, 2.7, ("parts", 2)),
    (SD15, 1, ("layers", 3)),
    (SDXL, 24, ("whole", 8)), (SDXL, 8, ("parts", 8)), (SDXL, 4, ("layers", 8)), (SDXL, 2, ("layers", 8)),
])  # fmt: skip
def test_the_cheapest_means_that_fits_is_chosen_and_as_many_pictures_as_fit(needs, memory, chosen):
    means, together = choose_means(needs, memory * GB, None)
    assert (means, together) == chosen and needs.peak(means, together) <= memory * GB
    dearer = list(MEANS)[: list(MEANS).index(means)]
    assert not any(needs.peak(other, 1) <= memory * GB for other in dearer)
    assert together == 8 or needs.peak(means, together + 1) > memory * GB


def test_pictures_that_are_asked_for_together_decide_the_means():
    assert choose_means(SD15, 4 * GB, 7) == ("whole", 7)
    assert choose_means(SD15, 4 * GB, 8) == ("parts", 8)
    with pytest.raises(UserError, match="0.5 GB of GPU memory .* drawing 2 at once takes 0.8 GB .* --image_batch_size"):
        choose_means(SD15, 0.5 * GB, 2)


def test_a_controlnet_stays_while_the_others_take_turns():
    control = Needs(SD15.weights | {"controlnet": 0.72e9}, SD15.turns, SD15.layer, SD15.denoise, SD15.decode)
    for means, more in {"whole": 0.72e9, "parts": 0.72e9, "layers": 0}.items():
        assert control.peak(means, 1) - SD15.peak(means, 1) == pytest.approx(MARGIN * more, abs=1)


@pytest.mark.parametrize("model", ["stable-diffusion", "amused"])
def test_what_a_model_takes_is_read_from_its_parts(vi_pth, model):
    generator = EEGImageGenerator(str(vi_pth / model), CPU, image_size=64)
    backbone = getattr(generator.pipeline, generator.family.backbone)
    needs = needs_of(generator.pipeline, backbone, 64, True)
    of_backbone = sum(parameter.nbytes for parameter in backbone.parameters())
    assert needs.weights[generator.family.backbone] == of_backbone and needs.layer < of_backbone
    assert needs.denoise == 2 * needs_of(generator.pipeline, backbone, 64, False).denoise > 0
    assert needs.decode == needs_of(generator.pipeline, backbone, 32, True).decode * 4 > 0


@pytest.mark.parametrize("means, moved", [
    ("whole", "to"), ("parts", "enable_model_cpu_offload"), ("layers", "enable_sequential_cpu_offload"),
])  # fmt: skip
def test_a_generator_puts_its_parts_where_the_memory_allows(vi_pth, monkeypatch, capsys, means, moved):
    """As on a GPU that has just enough; nothing is moved, and the calls that would are noted."""
    generator, calls = EEGImageGenerator(str(vi_pth / "stable-diffusion"), CPU, image_size=64), []
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "to"):
        monkeypatch.setattr(f"diffusers.DiffusionPipeline.{name}", lambda *_, name=name, **__: calls.append(name))
    memory = needs_of(generator.pipeline, generator.pipeline.unet, 64, True).peak(means, 1)
    monkeypatch.setattr("models.image_generator.memory_for", lambda device, limit_gb: memory)
    generator.device = torch.device("cuda")
    generator._place(None, None)
    assert calls == [moved] and generator.at_once == 1 and MEANS[means] in capsys.readouterr().out

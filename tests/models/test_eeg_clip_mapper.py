import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from models.eeg_clip_mapper import (
    MAPPERS,
    CLIPImageTargetBuilder,
    CLIPTextTargetBuilder,
    EEGCLIPMapper,
    mapper_loss,
    mapper_readouts,
    mean_pairwise_cosine,
)
from utils.errors import UserError

ALL = {"cls": 5.0, "contrastive": 2.0, "cos": 1.0, "mse": 0.1}


@pytest.fixture(params=MAPPERS)
def mapper(request):
    torch.manual_seed(0)
    return EEGCLIPMapper(mapper=request.param).eval()


def test_the_mapper_has_the_published_size():
    assert sum(p.numel() for p in EEGCLIPMapper().parameters()) == 10_862_602
    learned = EEGCLIPMapper(token_positions="learned")
    assert sum(p.numel() for p in learned.parameters()) == 10_862_602 + 20 * 512


def test_every_mapper_gives_states_pooled_vector_and_logits(mapper):
    states, pooled, logits = mapper(torch.randn(3, 20, 200))
    assert (states.shape, pooled.shape, logits.shape) == ((3, 77, 768), (3, 768), (3, 10))


def test_a_trials_output_does_not_depend_on_its_batch(mapper):
    x = torch.randn(4, 20, 200)
    for together, alone in zip(mapper(x), mapper(x[2:3]), strict=True):
        assert torch.allclose(together[2], alone[0], atol=1e-5)


def test_every_parameter_learns(mapper):
    outputs = mapper(torch.randn(4, 20, 200))
    loss, _ = mapper_loss(outputs, torch.arange(4), torch.randn(10, 768), torch.randn(10, 77, 768), ALL, 0.5, True)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mapper.parameters())


def test_without_positions_the_order_of_the_tokens_does_not_matter_and_with_them_it_does():
    torch.manual_seed(0)
    x, order = torch.randn(2, 20, 200), torch.randperm(20)
    blind = EEGCLIPMapper().eval()
    assert torch.allclose(blind(x)[2], blind(x[:, order])[2], atol=1e-5)
    seeing = EEGCLIPMapper(token_positions="learned").eval()
    assert not torch.allclose(seeing(x)[2], seeing(x[:, order])[2], atol=1e-4)


# ---------------------------------------------------------------- the loss, by hand


def by_hand(states, pooled, logits, label, prototypes, text_states, temperature):
    """The four terms with NumPy and loops."""
    cls = contrastive = cos = 0.0
    for b, k in enumerate(label):
        cls -= logits[b][k] - math.log(sum(math.exp(v) for v in logits[b]))
        cosines = [float(pooled[b] @ p / np.linalg.norm(pooled[b]) / np.linalg.norm(p)) for p in prototypes]
        contrastive -= cosines[k] / temperature - math.log(sum(math.exp(c / temperature) for c in cosines))
        cos += 1 - cosines[k]
    mse = np.mean([(states[b] - text_states[k]) ** 2 for b, k in enumerate(label)])
    return {"cls": cls / len(label), "contrastive": contrastive / len(label), "cos": cos / len(label), "mse": mse}


def test_the_loss_is_the_published_formula():
    rng = np.random.default_rng(0)
    states, pooled, logits = rng.normal(size=(3, 77, 6)), rng.normal(size=(3, 6)), rng.normal(size=(3, 4))
    prototypes, text_states, label = rng.normal(size=(4, 6)), rng.normal(size=(4, 77, 6)), [2, 0, 3]
    expected = by_hand(states, pooled, logits, label, prototypes, text_states, 0.5)
    outputs = tuple(torch.from_numpy(v) for v in (states, pooled, logits))
    targets = torch.from_numpy(prototypes).float(), torch.from_numpy(text_states).float()
    loss, parts = mapper_loss(outputs, torch.tensor(label), *targets, ALL, 0.5, with_mse=True)
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-4), name
    assert float(loss) == pytest.approx(sum(ALL[name] * value for name, value in expected.items()), rel=1e-4)
    other = {"cls": 1.0, "contrastive": 3.0, "cos": 0.5, "mse": 7.0}
    loss, _ = mapper_loss(outputs, torch.tensor(label), *targets, other, 0.5, with_mse=True)
    assert float(loss) == pytest.approx(sum(other[name] * value for name, value in expected.items()), rel=1e-4)


def test_a_case_that_can_be_done_in_the_head():
    """Two classes, unit vectors: cosine 1 with the own prototype and 0 with the other, logits 0, τ 0.5."""
    outputs = torch.zeros(1, 77, 2), torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)
    text_states = torch.full((2, 77, 2), 2.0)
    loss, parts = mapper_loss(outputs, torch.tensor([0]), torch.eye(2), text_states, ALL, 0.5, with_mse=True)
    assert float(parts["cls"]) == pytest.approx(math.log(2))
    assert float(parts["contrastive"]) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(parts["cos"]) == pytest.approx(0, abs=1e-6) and float(parts["mse"]) == pytest.approx(4)
    assert float(loss) == pytest.approx(5 * math.log(2) + 2 * math.log(1 + math.exp(-2)) + 0.4)


def test_the_mse_term_is_absent_in_warm_up():
    states = torch.randn(2, 77, 6, requires_grad=True)
    outputs = states, torch.randn(2, 6), torch.randn(2, 4)
    loss, parts = mapper_loss(
        outputs, torch.tensor([0, 1]), torch.randn(4, 6), torch.randn(4, 77, 6), ALL, 0.5, with_mse=False
    )
    assert "mse" not in parts and not loss.requires_grad


def test_read_outs_are_the_head_and_the_nearest_prototype():
    prototypes = torch.eye(3)
    outputs = (
        torch.zeros(2, 77, 3),
        torch.tensor([[0.1, 5.0, 0.2], [-1.0, -2.0, -0.5]]),
        torch.tensor([[3.0, 0, 0], [0, 0, 1]]),
    )
    rows = mapper_readouts(outputs, prototypes)
    assert [row["head_label"] for row in rows] == [0, 2] and [row["prototype_label"] for row in rows] == [1, 2]
    assert all(sum(row["probabilities"]) == pytest.approx(1, abs=1e-5) for row in rows)


def test_mean_pairwise_cosine_by_hand():
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0], [0, 2.0], [1.0, 1.0]])) == pytest.approx(2 * math.sqrt(0.5) / 3)


# ---------------------------------------------------------------- targets


def test_image_targets_are_clips_projected_embeddings_built_once(vi_pth, tmp_path, monkeypatch):
    from transformers import CLIPImageProcessorPil, CLIPModel

    photos = []
    for k, colour in enumerate(("red", "green", "blue")):
        photos.append(tmp_path / f"{k}.jpg")
        Image.new("RGB", (90, 70), colour).save(photos[-1])
    builder = CLIPImageTargetBuilder(str(vi_pth / "clip"), tmp_path / "cache")
    targets = builder.build(photos)
    assert targets.shape == (3, 768) and not targets.requires_grad
    model = CLIPModel.from_pretrained(vi_pth / "clip", dtype=torch.float32).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(vi_pth / "clip")(
        [Image.open(p) for p in photos], return_tensors="pt"
    )
    with torch.no_grad():
        vision = model.vision_model(pixels["pixel_values"])
        expected = model.visual_projection(vision.pooler_output)
    assert torch.allclose(targets, expected, atol=1e-4)

    def never(*args):
        raise AssertionError("encoded twice")

    monkeypatch.setattr(CLIPImageTargetBuilder, "_encode", never)
    assert torch.equal(builder.build(photos), targets)
    shutil.copytree(vi_pth / "clip", tmp_path / "another_clip")
    with pytest.raises(AssertionError, match="encoded twice"):
        CLIPImageTargetBuilder(str(tmp_path / "another_clip"), tmp_path / "cache").build(photos)
    Image.new("RGB", (90, 70), "white").save(photos[0])  # another photo under the same name
    with pytest.raises(AssertionError, match="encoded twice"):
        builder.build(photos)


def test_text_targets_are_what_the_image_model_reads(vi_pth, tmp_path):
    from models.image_generator import EEGImageGenerator

    prompts = ["a photo of a dog", "a circle"]
    for name in ("stable-diffusion", "amused"):
        states, pooled = CLIPTextTargetBuilder(str(vi_pth / name), tmp_path).build(prompts)
        assert states.shape == (2, 77, 768) and pooled.shape == (2, 768)
        generator = EEGImageGenerator(str(vi_pth / name), torch.device("cpu"), image_size=64)
        for k, prompt in enumerate(prompts):
            own = generator.embed(prompt)
            assert torch.allclose(own.states[0], states[k], atol=1e-4)
            assert own.pooled is None or torch.allclose(own.pooled[0], pooled[k], atol=1e-4)


def test_photos_and_models_that_are_none_are_named(vi_pth, tmp_path):
    builder = CLIPImageTargetBuilder(str(vi_pth / "clip"), tmp_path)
    with pytest.raises(UserError, match="Animal_dog.jpg is missing"):
        builder.build([tmp_path / "Animal_dog.jpg"])
    (tmp_path / "Animal_dog.jpg").write_text("no picture")
    with pytest.raises(UserError, match="Animal_dog.jpg is not a picture"):
        builder.build([tmp_path / "Animal_dog.jpg"])
    Image.new("RGB", (8, 8)).save(tmp_path / "fine.jpg")
    with pytest.raises(UserError, match="--clip_model"):
        CLIPImageTargetBuilder(str(tmp_path), tmp_path).build([tmp_path / "fine.jpg"])
    with pytest.raises(UserError, match="--image_model"):
        CLIPTextTargetBuilder(str(tmp_path), tmp_path).build(["x"])

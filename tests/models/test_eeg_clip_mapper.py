import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from models import MAPPERS, choose
from models.eeg_clip_mapper import (
    LOSS_TERMS,
    CLIPImageTargetBuilder,
    CLIPTextTargetBuilder,
    EEGCLIPMapper,
    EEGMapperModel,
    LinearMapper,
    MapperBatch,
    QFormerMapper,
    mapper_loss,
    mean_pairwise_cosine,
)
from models.poolings import EEGTokenReducer
from models.token_encoders import EEGNet
from stages.pictures import Stimuli
from stages.rows import mapper_readouts
from utils.errors import UserError

ALL = {"cls": 5.0, "contrastive": 2.0, "cos": 1.0, "mse": 0.1}


@pytest.fixture(params=MAPPERS)
def mapper(request):
    torch.manual_seed(0)
    return choose(MAPPERS, request.param)().eval()


def test_the_mapper_has_the_published_size():
    assert EEGCLIPMapper is QFormerMapper
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
    loss, _ = mapper_loss(MapperBatch(*outputs, torch.arange(4), torch.randn(10, 768), torch.randn(10, 77, 768)), ALL)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mapper.parameters())


@pytest.mark.parametrize("kind", MAPPERS)
def test_every_mapper_fits_other_encoders_classes_and_text_encoders(kind):
    mapper = choose(MAPPERS, kind)(n_classes=4, n_tokens=16, clip_width=32, in_dim=16, token_positions="learned")
    states, pooled, logits = mapper(torch.randn(2, 16, 16))
    assert (states.shape, pooled.shape, logits.shape) == ((2, 77, 32), (2, 32), (2, 4))


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


def test_the_terms_are_the_published_four():
    assert list(LOSS_TERMS) == list(ALL)


def test_the_loss_is_the_published_formula():
    rng = np.random.default_rng(0)
    states, pooled, logits = rng.normal(size=(3, 77, 6)), rng.normal(size=(3, 6)), rng.normal(size=(3, 4))
    prototypes, text_states, label = rng.normal(size=(4, 6)), rng.normal(size=(4, 77, 6)), [2, 0, 3]
    expected = by_hand(states, pooled, logits, label, prototypes, text_states, 0.5)
    outputs = tuple(torch.from_numpy(v).float() for v in (states, pooled, logits))
    targets = torch.from_numpy(prototypes).float(), torch.from_numpy(text_states).float()
    batch = MapperBatch(*outputs, torch.tensor(label), *targets, temperature=0.5)
    loss, parts = mapper_loss(batch, ALL)
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-4), name
    assert float(loss) == pytest.approx(sum(ALL[name] * value for name, value in expected.items()), rel=1e-4)
    other = {"cls": 1.0, "contrastive": 3.0, "cos": 0.5, "mse": 7.0}
    loss, _ = mapper_loss(batch, other)
    assert float(loss) == pytest.approx(sum(other[name] * value for name, value in expected.items()), rel=1e-4)


def test_a_case_that_can_be_done_in_the_head():
    """Two classes, unit vectors: cosine 1 with the own prototype and 0 with the other, logits 0, τ 0.5."""
    outputs = torch.zeros(1, 77, 2), torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)
    text_states = torch.full((2, 77, 2), 2.0)
    loss, parts = mapper_loss(MapperBatch(*outputs, torch.tensor([0]), torch.eye(2), text_states, 0.5), ALL)
    assert float(parts["cls"]) == pytest.approx(math.log(2))
    assert float(parts["contrastive"]) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(parts["cos"]) == pytest.approx(0, abs=1e-6) and float(parts["mse"]) == pytest.approx(4)
    assert float(loss) == pytest.approx(5 * math.log(2) + 2 * math.log(1 + math.exp(-2)) + 0.4)


def test_a_term_that_is_not_named_takes_no_part():
    """As the mean squared error in the warm-up."""
    states = torch.randn(2, 77, 6, requires_grad=True)
    batch = MapperBatch(
        states, torch.randn(2, 6), torch.randn(2, 4), torch.tensor([0, 1]), torch.randn(4, 6), torch.randn(4, 77, 6)
    )
    loss, parts = mapper_loss(batch, {name: ALL[name] for name in ("cls", "contrastive", "cos")})
    assert "mse" not in parts and not loss.requires_grad
    loss, parts = mapper_loss(batch, ALL)
    assert "mse" in parts and loss.requires_grad


def test_label_smoothing_is_the_heads_alone():
    torch.manual_seed(0)
    logits, label = torch.randn(3, 4), torch.tensor([0, 3, 1])
    rest = (label, torch.randn(4, 6), torch.randn(4, 77, 6))
    outputs = torch.randn(3, 77, 6), torch.randn(3, 6), logits
    plain = mapper_loss(MapperBatch(*outputs, *rest), ALL)[1]
    smooth = mapper_loss(MapperBatch(*outputs, *rest, label_smoothing=0.3), ALL)[1]
    log_p = logits.log_softmax(dim=-1)
    by_hand = 0.7 * -log_p.gather(1, label[:, None]).mean() + 0.3 * -log_p.mean()
    assert torch.allclose(smooth["cls"], by_hand, atol=1e-6) and not torch.allclose(plain["cls"], by_hand, atol=1e-3)
    assert all(torch.equal(plain[name], smooth[name]) for name in ("contrastive", "cos", "mse"))


def test_a_new_term_is_one_entry(monkeypatch):
    monkeypatch.setitem(LOSS_TERMS, "size", lambda batch: batch.pooled.square().mean())
    batch = MapperBatch(
        torch.zeros(1, 77, 2), torch.full((1, 2), 3.0), torch.zeros(1, 2), torch.tensor([0]), torch.eye(2),
        torch.zeros(2, 77, 2),
    )  # fmt: skip
    loss, parts = mapper_loss(batch, {"size": 2.0})
    assert float(loss) == pytest.approx(18) and list(parts) == ["size"]


@pytest.mark.parametrize("train_encoder, phases", [("never", []), ("joint", [True]), ("always", [False, True])])
def test_the_encoder_before_the_mapper_is_trained_when_it_is_said_to_be(train_encoder, phases):
    encoder = EEGNet(22, 512)
    mapper = LinearMapper(n_tokens=16, clip_width=32, in_dim=16)
    model = EEGMapperModel(mapper, encoder, EEGTokenReducer({"all electrodes": [0]}, 1), train_encoder)
    for joint in (False, True):
        model.set_phase(joint)
        model.zero_grad()
        sum(output.sum() for output in model.train()(torch.randn(3, 22, 512))).backward()
        assert all(p.grad is not None for p in mapper.parameters())
        assert {p.grad is not None for p in encoder.parameters()} == {joint in phases} == {encoder.training}


def test_read_outs_are_the_head_and_the_nearest_prototype():
    prototypes = torch.eye(3)
    outputs = (
        torch.zeros(2, 77, 3),
        torch.tensor([[0.1, 5.0, 0.2], [-1.0, -2.0, -0.5]]),
        torch.tensor([[3.0, 0, 0], [0, 0, 1]]),
    )
    rows = mapper_readouts(outputs, prototypes)
    assert [row["head"].label for row in rows] == [0, 2] and [row["prototype"].label for row in rows] == [1, 2]
    for row in rows:
        assert all(sum(r.probabilities) == pytest.approx(1, abs=1e-5) for r in row.values())
        assert all(r.chance == pytest.approx(1 / 3) for r in row.values())


def test_mean_pairwise_cosine_by_hand():
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0], [0, 2.0], [1.0, 1.0]])) == pytest.approx(2 * math.sqrt(0.5) / 3)


# ---------------------------------------------------------------- targets


def test_image_targets_are_clips_projected_embeddings_built_once(vi_pth, tmp_path, monkeypatch):
    from transformers import CLIPImageProcessorPil, CLIPModel

    photos = [Image.new("RGB", (90, 70), colour) for colour in ("red", "green", "blue")]
    builder = CLIPImageTargetBuilder(str(vi_pth / "clip"), tmp_path / "cache")
    targets = builder.build(photos)
    assert targets.shape == (3, 768) and not targets.requires_grad
    model = CLIPModel.from_pretrained(vi_pth / "clip", dtype=torch.float32).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(vi_pth / "clip")(photos, return_tensors="pt")
    with torch.no_grad():
        vision = model.vision_model(pixels["pixel_values"])
        expected = model.visual_projection(vision.pooler_output)
    assert torch.allclose(targets, expected, atol=1e-4)

    def never(*args):
        raise AssertionError("encoded twice")

    monkeypatch.setattr(CLIPImageTargetBuilder, "load", never)
    assert torch.equal(builder.build(photos), targets)
    shutil.copytree(vi_pth / "clip", tmp_path / "another_clip")
    with pytest.raises(AssertionError, match="encoded twice"):
        CLIPImageTargetBuilder(str(tmp_path / "another_clip"), tmp_path / "cache").build(photos)
    for other in (Image.new("RGB", (90, 70), "white"), Image.new("RGB", (70, 90), "red"), photos[1]):
        with pytest.raises(AssertionError, match="encoded twice"):  # another picture
            builder.build([other, *photos[1:]])


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


def test_targets_that_are_not_finite_are_not_kept(vi_pth, tmp_path, monkeypatch):
    builder = CLIPImageTargetBuilder(str(vi_pth / "clip"), tmp_path / "cache")
    monkeypatch.setattr(builder, "load", lambda: lambda pictures: torch.full((1, 768), float("nan")))
    with pytest.raises(UserError, match="NaN or infinity"):
        builder.build([Image.new("RGB", (8, 8))])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_photos_that_are_none_are_named(tmp_path):
    with pytest.raises(UserError, match="Animal_dog.jpg is missing"):
        Stimuli({0: "Animal_dog.jpg"}, 1, tmp_path)
    (tmp_path / "Animal_dog.jpg").write_text("no picture")
    with pytest.raises(UserError, match="Animal_dog.jpg is not a picture"):
        Stimuli({0: "Animal_dog.jpg"}, 1, tmp_path)


def test_models_that_are_none_are_named_before_anything_is_built(tmp_path):
    for place in (str(tmp_path), "no/such_model"):
        with pytest.raises(UserError, match="--clip_model"):
            CLIPImageTargetBuilder(place, tmp_path)
        with pytest.raises(UserError, match="--image_model"):
            CLIPTextTargetBuilder(place, tmp_path)


def test_a_damaged_model_is_one_line(vi_pth, tmp_path):
    shutil.copytree(vi_pth / "clip", tmp_path / "clip")
    (tmp_path / "clip/model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="--clip_model") as error:
        CLIPImageTargetBuilder(str(tmp_path / "clip"), tmp_path).build([Image.new("RGB", (8, 8))])
    assert "\n" not in str(error.value)
    shutil.copytree(vi_pth / "amused", tmp_path / "amused")
    (tmp_path / "amused/text_encoder/model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="--image_model") as error:
        CLIPTextTargetBuilder(str(tmp_path / "amused"), tmp_path).build(["x"])
    assert "\n" not in str(error.value)

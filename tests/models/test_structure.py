"""SGDM's map of edges and VAE: what a map says, sizes, the loss by its formula."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from models.structure import EDGE, StructuralVAE, as_pixels, map_picture, structure_map, vae_loss


def square(edge=128, at=(32, 32, 96, 96), ink=(200, 30, 30), ground=(240, 240, 240)):
    picture = Image.new("RGB", (edge, edge), ground)
    ImageDraw.Draw(picture).rectangle(at, fill=ink)
    return picture


def test_a_map_is_bright_where_grey_changes_and_dark_elsewhere():
    found = structure_map(square())
    assert found.shape == (EDGE, EDGE) and found.dtype == np.float32 and found.min() >= 0 and found.max() == 1
    assert found[64, 32] > 0.9 and found[32, 64] > 0.9 and found[64, 96] > 0.9  # edges
    assert found[64, 64] < 0.02 and found[10, 10] < 0.02  # inside, outside


@pytest.mark.parametrize("change", ["size", "contrast", "mode"])
def test_a_map_does_not_depend_on_size_contrast_or_mode(change):
    base = structure_map(square(256, (64, 64, 192, 192)))
    other = {"size": square(512, (128, 128, 384, 384)), "contrast": square(256, (64, 64, 192, 192), ink=(220, 180,
        180)),
             "mode": square(256, (64, 64, 192, 192)).convert("L")}[change]  # fmt: skip
    assert np.corrcoef(base.ravel(), structure_map(other).ravel())[0, 1] > 0.97


@pytest.mark.parametrize("picture", [Image.new("RGB", (128, 128), "white"), Image.new("L", (3, 5))])
def test_a_picture_without_edges_has_a_map_without_edges(picture):
    found = structure_map(picture)
    assert np.isfinite(found).all() and found.max() < 0.02


def test_a_map_that_is_hardly_there_is_no_division_by_nothing():
    picture = square()
    thin = Image.new("RGB", (128, 128), "white")
    thin.putpixel((64, 64), (0, 0, 0))  # fewer than one pixel in a hundred
    assert np.isfinite(structure_map(thin)).all() and structure_map(thin).max() == 1
    as_picture = map_picture(torch.from_numpy(structure_map(picture))[None])
    assert as_picture.size == (128, 128) and np.asarray(as_picture)[64, 32].min() > 220


def test_sizes_and_shapes_are_those_described():
    vae = StructuralVAE()
    of_map = sum(p.numel() for p in vae.map_decoder.parameters())
    assert of_map == 2_277_745 and sum(p.numel() for p in vae.parameters()) - of_map == 103_228_291
    small = StructuralVAE(widths=(4, 8, 16), hidden=32)
    restored, mean, log_variance, logits = small(as_pixels([square(), square(200)]))
    assert (
        restored.shape == (2, 3, 128, 128)
        and mean.shape == log_variance.shape == (2, 512)
        and logits.shape == (2, 1, 128, 128)
    )
    assert restored.min() >= 0 and restored.max() <= 1


def test_the_loss_is_its_formula_and_does_not_grow_with_the_batch():
    torch.manual_seed(0)
    small, x = StructuralVAE(widths=(4, 8, 16), hidden=32), as_pixels([square(), square(at=(10, 10, 50, 90))])
    maps = torch.stack([torch.from_numpy(structure_map(square()))[None]] * 2)
    outputs = small(x)
    loss, parts = vae_loss(x, maps, outputs, 0.1)
    restored, mean, log_variance, logits = (part.double() for part in outputs)
    kl = (0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)).sum() / 2 / (3 * 128 * 128)
    p = logits.sigmoid()
    bce = -(maps * p.log() + (1 - maps) * (1 - p).log()).mean()
    expected = ((restored - x) ** 2).mean() + kl + 0.1 * bce
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    twice = vae_loss(
        torch.cat([x, x]), torch.cat([maps, maps]), tuple(torch.cat([part, part]) for part in outputs), 0.1
    )[0]
    assert float(twice) == pytest.approx(float(loss), rel=1e-5)


def test_it_learns_a_map_from_its_latent():
    torch.manual_seed(0)
    pictures = [square(at=(20 + 8 * k, 30, 70 + 4 * k, 90)) for k in range(4)]
    x, maps = as_pixels(pictures), torch.stack([torch.from_numpy(structure_map(p))[None] for p in pictures])
    vae = StructuralVAE(latent=16, widths=(4, 8, 16), hidden=32)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    for _ in range(60):
        loss, parts = vae_loss(x, maps, vae(x), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = vae.map_logits(vae.encode(x)[0]).sigmoid().detach()
    assert np.corrcoef(drawn.flatten().numpy(), maps.flatten().numpy())[0, 1] > 0.6

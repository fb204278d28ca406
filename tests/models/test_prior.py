"""The diffusion prior and the caption adapter: the published network, its sampler by steps, what a batch changes."""

import json
import math
import zlib

import numpy as np
import pytest
import torch

from models.prior import CaptionAdapter, DiffusionPrior, DiffusionPriorUNet
from models.published import from_published
from utils.errors import UserError


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    prior = DiffusionPrior(dim=12, condition_dim=7, widths=(32, 16, 8))
    prior.standardise_by(3 + 2 * torch.randn(50, 12))
    return prior.eval()


def test_the_published_prior_gives_its_golden_vectors_with_and_without_condition(shared):
    shapes = json.loads((shared / "golden/image_decoding.json").read_text())["prior"]
    vectors = {k: torch.from_numpy(v) for k, v in np.load(shared / "golden/image_decoding/prior.npz").items()}
    state = {}
    for name, shape in shapes.items():  # the rule of the golden vectors
        z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        z = (
            0.5 * z / np.sqrt(np.prod(shape[1:]))
            if len(shape) > 1
            else 1 + 0.1 * z
            if name.endswith("weight")
            else 0.1 * z
        )
        state[name] = torch.from_numpy(np.asarray(z, np.float32))
    model = from_published("prior", state)
    x, t, condition = vectors["x"], vectors["t"], vectors["condition"]
    with torch.no_grad():
        assert (model(x, t, condition) - vectors["y"]).abs().max() <= 1e-5
        assert (model(x, t) - vectors["y_unconditional"]).abs().max() <= 1e-5
        nobody = model(
            x, t, condition, kept=torch.zeros(3, dtype=torch.bool)
        )  # a dropped condition is none, bias and all
        assert (nobody - vectors["y_unconditional"]).abs().max() <= 1e-5
    del state["encode_layers.2.0.bias"]
    with pytest.raises(UserError, match="lacks|encode_layers.2.0.bias"):
        from_published("prior", state)


def test_the_sizes_are_the_published_ones():
    assert sum(p.numel() for p in DiffusionPriorUNet().parameters()) == 9_675_648
    adapter = CaptionAdapter()
    assert sum(p.numel() for p in adapter.parameters()) == 1_052_676
    assert adapter(torch.randn(2, 1024)).shape == (2, 257, 1024)


def test_sampling_is_the_formula_step_by_step(small):
    """DDPM (Ho et al. 2020, eq. 7 and 11) over 50 of 1000 times, with guidance, transcribed without diffusers."""
    condition, guidance, steps = torch.randn(1, 7, generator=torch.Generator().manual_seed(1)), 5.0, 50
    generator = torch.Generator().manual_seed(42)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - beta, dim=0)
    x = torch.randn(12, generator=generator).double()[None]
    for t in range(980, -1, -20):
        with torch.no_grad():
            at = torch.tensor([t])
            told, untold = small.net(x.float(), at, condition), small.net(x.float(), at)
        noise = (untold + guidance * (told - untold)).double()
        now, before = kept[t], kept[t - 20] if t >= 20 else torch.tensor(1.0, dtype=torch.float64)
        alpha = now / before  # of the whole step
        clean = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)  # not cut at ±1
        x = math.sqrt(before) * (1 - alpha) / (1 - now) * clean + math.sqrt(alpha) * (1 - before) / (1 - now) * x
        if t > 0:
            variance = (1 - before) / (1 - now) * (1 - alpha)
            x = x + math.sqrt(variance) * torch.randn(1, 12, generator=generator).double()
    expected = x * small.sd + small.mean
    sampled = small.sample(condition, [42], steps, guidance)
    assert (sampled - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_row_of_a_batch_is_what_it_is_alone(small):
    condition = torch.randn(4, 7)
    together = small.sample(condition, [3, 1, 4, 1], 10)
    alone = torch.cat([small.sample(condition[k : k + 1], [seed], 10) for k, seed in enumerate([3, 1, 4, 1])])
    assert (together - alone).abs().max() < 1e-5 * together.abs().max()
    assert (together[1] - together[3]).abs().max() > 1e-3  # the same noise, another condition
    again = small.sample(condition[:1].expand(2, -1), [3, 5], 10)
    assert (again[0] - again[1]).abs().max() > 1e-3  # the same condition, other noise


def test_a_trained_prior_follows_its_condition():
    """Two clusters of embeddings, told by the sign of the condition's first number: samples fall into the right one."""
    torch.manual_seed(0)
    centre = torch.tensor([[4.0, -2.0, 1.0, 0.5], [-4.0, 2.0, 3.0, -0.5]])
    which = torch.arange(256) % 2
    target, condition = centre[which] + 0.1 * torch.randn(256, 4), (which * 2.0 - 1)[:, None].expand(-1, 3)
    prior = DiffusionPrior(4, 3, (64, 32, 16))
    prior.standardise_by(target)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    prior.train()
    for _ in range(500):
        loss = prior.loss(target, condition)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    samples = prior.sample(condition[:20], list(range(20)), 50, guidance=2.0)
    near = torch.cdist(samples, centre).argmin(dim=1)
    assert (near == which[:20]).float().mean() >= 0.95
    assert (samples - centre[which[:20]]).norm(dim=1).median() < 2.0  # scaled back


def test_conditions_are_dropped_a_sample_at_a_time():
    prior = DiffusionPrior(4, 3, (8, 4))
    seen = []
    prior.net.forward = lambda x, t, condition, told: (seen.append(told), torch.zeros_like(x))[1]
    torch.manual_seed(0)
    prior.loss(torch.randn(2000, 4), torch.randn(2000, 3), drop=0.1)
    assert 0.07 < 1 - float(seen[0].float().mean()) < 0.13

"""What every entry of the table of encoders must do."""

import numpy as np
import pytest
import torch

from datasets.description import load_description
from models import FEATURE_ENCODERS, choose
from models.token_encoders import load_encoder
from utils.errors import UserError

SECONDS = 4


def make(name, dataset="BCICIV2a", sfreq=250.0, seconds=SECONDS, seed=0):
    montage = load_description(dataset).montage
    return load_encoder(
        name, seed=seed, electrodes=montage.electrodes, brain_regions=montage.brain_regions,
        sorted_indices=montage.sorted_indices, n_times=round(seconds * sfreq), sfreq=sfreq,
    )  # fmt: skip


def trials(encoder, n=3, n_chans=22, sfreq=250.0, seconds=SECONDS, seed=0) -> torch.Tensor:
    """Noise of EEG's amplitude, prepared for an encoder."""
    rng = np.random.default_rng(seed)
    raw = (20 * rng.standard_normal((n, n_chans, round(seconds * sfreq)))).astype(np.float32)
    return torch.from_numpy(np.stack([encoder.prepare(x, sfreq) for x in raw]))


@pytest.fixture(params=[name for name in FEATURE_ENCODERS if not name.endswith(":")])
def name(request):
    return request.param


@pytest.mark.parametrize("dataset", ["BCICIV2a", "BCICIV2b", "VI"])
def test_features_are_electrodes_by_moments_by_width(name, dataset):
    n_chans = len(load_description(dataset).montage.electrodes)
    encoder = make(name, dataset)
    features = encoder(trials(encoder, 2, n_chans))
    order = encoder.electrode_order
    assert features.shape[:2] == (2, 1 if order is None else n_chans) and features.shape[3] == encoder.width
    assert features.shape[2] >= 1 and torch.isfinite(features).all()
    assert order is None or sorted(order) == list(range(n_chans))
    longer = make(name, dataset, seconds=2 * SECONDS)
    size = longer(trials(longer, 1, n_chans, seconds=2 * SECONDS)).shape
    assert size[2:] == (1, encoder.width) if name == "evoked" else size[2] >= 2 * features.shape[2]


def test_a_signal_is_prepared_alike_from_every_sampling_rate(name):
    """Rhythms that all rates can hold, sampled at six of them."""
    prepared, features = [], []
    for sfreq in (250.0, 160.0, 200.0, 500.0, 512.0, 1000.0):
        t = np.arange(round(SECONDS * sfreq)) / sfreq
        phases = np.linspace(0, 3, 22)[:, None]
        x = 15 * np.sin(2 * np.pi * 10 * t + phases) + 8 * np.sin(2 * np.pi * 6 * t - phases)  # microvolts
        encoder = make(name, sfreq=sfreq)
        prepared.append(encoder.prepare(x.astype(np.float32), sfreq))
        with torch.no_grad():
            features.append(encoder(torch.from_numpy(prepared[-1])[None]))
    first = prepared[0]
    for other in prepared[1:]:
        assert other.shape == first.shape and other.dtype == np.float32
        a, b = (x.reshape(22, -1) for x in (first, other))
        edge = min(100, a.shape[1] // 8)  # a filter rings where a window ends
        a, b = a[:, edge:-edge], b[:, edge:-edge]
        assert np.abs(a - b).max() < 0.03 * np.abs(a).max()
    assert len({f.shape for f in features}) == 1


def test_preparing_keeps_proportions_and_does_not_change_what_is_stored(name):
    encoder = make(name)
    x = (20 * np.random.default_rng(0).standard_normal((22, 1000))).astype(np.float32)
    x.flags.writeable = False  # a store's samples are mapped, read-only
    before = x.copy()
    once, twice = encoder.prepare(x, 250.0), encoder.prepare(2 * x, 250.0)
    assert np.allclose(2 * once, twice, rtol=1e-4, atol=1e-5) and np.array_equal(x, before)


def test_gradients_reach_all_trainable_parameters(name):
    encoder = make(name)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())  # as it is loaded
    trained = encoder.trainable_parameters()
    for parameter in trained:
        parameter.requires_grad_(True)
    features = encoder(trials(encoder))
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_a_state_dict_brings_an_encoder_back(name):
    first, second = make(name, seed=0), make(name, seed=1)
    x = trials(first)
    first.train()  # running means and variances are part of an encoder
    with torch.no_grad():
        for _ in range(3):
            first(x)
        first.eval()
        assert not torch.allclose(first(x), second(x), atol=1e-3)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))


def test_the_same_seed_gives_the_same_weights(name):
    a, b, other = (make(name, seed=seed).state_dict() for seed in (3, 3, 4))
    drawn = [k for k, value in a.items() if value.ndim > 1]  # norms alone have no random weights
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], other[k]) for k in drawn) or not drawn


def test_a_trial_that_is_too_short_is_one_line(name):
    with pytest.raises(UserError) as error:
        encoder = make(name, seconds=0.1)
        encoder.prepare(np.zeros((22, 25), np.float32), 250.0)
    assert name.removesuffix("_8_2") in str(error.value) and " s" in str(error.value) and "\n" not in str(error.value)


def test_the_shortest_trial_that_is_accepted_gives_features(name):
    accepted = 0
    for n_times in (240, 250) if name == "csbrain" else range(40, 160):
        try:
            encoder = make(name, seconds=n_times / 250)
            x = encoder.prepare(np.ones((22, n_times), np.float32), 250.0)
        except UserError:
            continue
        accepted += 1
        assert encoder(torch.from_numpy(x)[None]).shape[2] >= 1, n_times
    assert accepted


def test_a_trials_features_do_not_depend_on_its_batch(name):
    encoder = make(name)
    x = trials(encoder, 4)
    with torch.no_grad():
        together, alone = encoder(x), encoder(x[2:3])
    assert torch.allclose(together[2], alone[0], rtol=1e-4, atol=1e-4 * together.abs().max().item())


def test_the_table_says_which_encoders_need_weights(name, capsys):
    encoder = make(name)
    out = capsys.readouterr().out
    assert ("RANDOM weights" in out) == encoder.pretrained and ("trained from scratch" in out) != encoder.pretrained
    assert encoder.lr == (1e-4 if encoder.pretrained else 1e-3)


# ---------------------------------------------------------------- the two small ones


def test_eegnet_is_the_papers_and_limits_its_spatial_filters():
    encoder = make("eegnet")
    shapes = {tuple(p.shape) for p in encoder.parameters() if p.ndim == 4}
    assert shapes == {(8, 1, 1, 64), (16, 1, 22, 1), (16, 1, 1, 16), (16, 16, 1, 1)}
    x = trials(encoder, 2)
    assert encoder(x).shape == (2, 1, 16, 16)
    with torch.no_grad():
        norms = encoder.spatial.weight.flatten(1).norm(dim=1)
        encoder.spatial.weight *= (5 / norms)[:, None, None, None]
        large = encoder(x)
        encoder.spatial.weight /= 5
        assert torch.allclose(large, encoder(x), atol=1e-5)  # a norm above 1 counts as 1
        encoder.spatial.weight /= 2
        assert not torch.allclose(large, encoder(x), atol=1e-3)


def test_shallow_convnet_gives_the_log_of_pooled_squares():
    encoder = make("shallow")
    x = trials(encoder, 2)
    features = encoder(x)
    assert features.shape == (2, 1, 15, 160)
    with torch.no_grad():
        h = encoder.norm(encoder.spatial(encoder.temporal(x[:, None])))[0, :, 0]  # (40, T')
        for token, feature in ((0, 0), (3, 1), (14, 159)):
            moment, channel = 4 * token + feature % 4, feature // 4
            power = h[channel, 15 * moment : 15 * moment + 75].square().mean()
            assert torch.allclose(features[0, 0, token, feature], power.log(), atol=1e-4)


def test_a_class_can_stand_in_the_table_itself():
    kind = choose(FEATURE_ENCODERS, "eegnet")
    assert choose({"mine": kind}, "mine") is kind

import numpy as np
import torch

from models.attribution import BANDS, by_band, mean_gradient


def test_of_a_linear_answer_it_is_weight_times_signal():
    x, weight = torch.randn(3, 2, 50), torch.randn(2, 50)
    gradient = mean_gradient(lambda x: (x * weight).sum(dim=(1, 2)), x, steps=2)
    assert torch.allclose(gradient, weight.expand(3, -1, -1), atol=1e-6)


def test_it_adds_up_to_the_rise_over_silence():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3, 40), torch.randn(3, 40)
    answer = lambda x: torch.sigmoid(((x * weight).sum(dim=(1, 2)) ** 2 / 40) - 1)  # noqa: E731
    added = (mean_gradient(answer, x, steps=200) * x).sum(dim=(1, 2))
    assert torch.allclose(added, answer(x) - answer(torch.zeros_like(x)), atol=1e-3)


def test_it_finds_the_electrode_the_moment_and_the_band_that_an_answer_depends_on():
    """A probability that rises with the power of 10 Hz at the second electrode in the second half."""
    sfreq, t = 128.0, np.arange(256) / 128
    wave = torch.from_numpy(np.exp(2j * np.pi * 10 * t) * (t >= 1)).to(torch.complex64)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((20, 3, 256)) + np.sin(2 * np.pi * 10 * t)).float()
    answer = lambda x: 1 - torch.exp(-(((x[:, 1].to(torch.complex64) @ wave).abs() / 100) ** 2))  # noqa: E731
    gradient = mean_gradient(answer, x).numpy()
    added = (gradient * x.numpy()).mean(axis=0)  # (C, T)
    assert np.abs(added[[0, 2]]).max() < 1e-6 and np.abs(added[1, t < 1]).max() < 1e-6
    of_band = {name: (gradient * part).sum(axis=(1, 2)).mean() for name, part in by_band(x.numpy(), sfreq).items()}
    assert of_band["8-13 Hz"] > 0.8 * sum(of_band.values())


def test_parts_of_a_signal_are_the_signal():
    x = np.random.default_rng(0).standard_normal((2, 3, 500))
    parts = by_band(x, 128.0)
    assert np.allclose(sum(parts.values()), x) and len(parts) == len(BANDS) + 1
    assert list(by_band(x, 32.0)) == ["1-4 Hz", "4-8 Hz", "8-13 Hz", "other"]  # what its rate can hold


def test_it_finds_the_simulated_rhythms_over_the_hands_areas_while_they_are_imagined(demo, script, tmp_path):
    """Imagery of a hand dims 8 to 13 Hz over the other side: what is left over its own side speaks for it.

    Trials are read from the fixation cross (0 s) to the rest (7 s); imagery is from 2 to 6 s.
    """
    from datasets.store import description_of_store
    from datasets.trials import load_splits
    from models.baselines import Data, eegnet

    whole = ("--skip_download", "--raw_dir", demo.raw, "--lmdb_dir", tmp_path / "store", "--tmin", 0, "--tmax", 7)
    assert script("prepare_data.py", *whole).code == 0
    electrodes = ["Fz", "C3", "C1", "Cz", "C2", "C4", "Pz", "POz"]
    store = str(tmp_path / "store")
    splits = load_splits(store, description_of_store(store), "published", {"regions": electrodes})
    train, val, test = (
        Data(np.stack([of.samples(t) for t in of.trials]), np.array(of.labels), [], of.sfreq) for of in splits.values()
    )
    net = eegnet(n_classes=4, seed=0, epochs=15, device=torch.device("cpu"))
    net.fit(train, val)
    said = torch.from_numpy(net.predict(test).argmax(axis=1))
    assert (said.numpy() == test.labels).mean() > 0.6
    x, trials = net._standard(net._at_its_rate(test)), torch.arange(len(said))
    model = net.model.requires_grad_(False)
    gradient = mean_gradient(lambda x: model(x).softmax(dim=1)[trials, said], x, steps=8).numpy()
    added = {name: gradient * part for name, part in by_band(x.numpy(), 128.0).items()}  # (N, C, T)
    whole = {name: of.sum(axis=(1, 2)).mean() for name, of in added.items()}
    assert whole["8-13 Hz"] > 0.8 * sum(whole.values())
    right = said.numpy() == test.labels
    halves = added["8-13 Hz"][right].sum(axis=1).mean(axis=0).reshape(-1, 64).sum(axis=1)  # of each half second
    four_seconds = np.convolve(halves, np.ones(8), "valid")  # from 0, 0.5, … 3 s on
    assert four_seconds.argmax() in (3, 4, 5) and four_seconds.max() > 0.7 * halves.sum() > 0, halves
    for hand, own in ((0, ["C3", "C1"]), (1, ["C4", "C2"])):
        of_hand = added["8-13 Hz"][right & (test.labels == hand)].sum(axis=2).mean(axis=0)
        of = dict(zip(splits["test"].montage.electrodes, of_hand, strict=True))
        assert max(of, key=of.get) in own and sum(of[name] for name in own) > 0.5 * sum(of.values()), of

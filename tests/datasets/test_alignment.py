import numpy as np
import pytest

from datasets import alignment
from datasets.alignment import ALIGNMENTS, LABELLED, METHODS, SIZE, USES, aligning_matrices, covariance, used_together
from datasets.bciciv2a_llm_dataset import DESCRIPTION as BCIC
from datasets.recording import Trial
from datasets.store import write_store
from datasets.trials import TrialDataset, load_splits
from utils.errors import UserError

MOST = max(USES.index(kind.uses) for kind in ALIGNMENTS.values())


def person(n=40, n_chans=5, seed=0, reference=False, subject="P1", sessions="TE"):
    """Trials whose electrodes are mixed, of two sessions that are mixed otherwise; and what is read of each."""
    rng, x, trials = np.random.default_rng(seed), {}, []
    for session in sessions:
        mixing = 30 * rng.standard_normal((n_chans, n_chans))
        for k in range(n):
            signal = mixing @ (rng.standard_normal((n_chans, 1)) * 0.3 + rng.standard_normal((n_chans, 200)))
            signal -= signal.mean(axis=0) if reference else 0
            trial = Trial(f"{subject}-{session}-{k}", k % 2, subject, session, 1 + k // 20, 1 + k % 20)
            x[trial.key] = signal.astype("<f4")
            trials.append(trial)
    return trials, x


def mean_covariance(trials, x, matrices) -> np.ndarray:
    return np.mean([covariance(matrices[t.key] @ x[t.key]) for t in trials], axis=0)


# ---------------------------------------------------------------- the matrices


@pytest.mark.parametrize("align, groups", [("session", "TE"), ("person", ["TE"])])
def test_the_mean_covariance_of_aligned_trials_is_that_of_independent_electrodes_of_one_size(
    align, groups, monkeypatch
):
    monkeypatch.setattr(alignment, "PRIOR", 0.0)
    trials, x = person()
    matrices = aligning_matrices(trials, lambda t: x[t.key], align, "euclidean")
    for group in groups:
        mean = mean_covariance([t for t in trials if t.session in group], x, matrices)
        assert np.allclose(mean, SIZE**2 * np.eye(5), atol=1e-3 * SIZE**2)


def test_by_zscore_each_electrode_has_one_size_and_what_is_mixed_stays_mixed(monkeypatch):
    monkeypatch.setattr(alignment, "PRIOR", 0.0)
    trials, x = person(sessions="T")
    matrices = aligning_matrices(trials, lambda t: x[t.key], "session", "zscore")
    mean = mean_covariance(trials, x, matrices)
    before = np.mean([covariance(x[t.key]) for t in trials], axis=0)
    sd = np.sqrt(np.diag(before))
    assert np.allclose(np.diag(mean), SIZE**2) and np.allclose(mean, SIZE**2 * before / np.outer(sd, sd), rtol=1e-3)


def test_the_riemannian_mean_is_pyriemanns(monkeypatch):
    mean_riemann = pytest.importorskip("pyriemann.geometry.mean").mean_riemann
    monkeypatch.setattr(alignment, "PRIOR", 0.0)
    trials, x = person(sessions="T")
    matrix = aligning_matrices(trials, lambda t: x[t.key], "session", "riemann")[trials[0].key].astype(float)
    mean = mean_riemann(np.stack([covariance(x[t.key]) for t in trials]))
    assert np.allclose(matrix @ mean @ matrix / SIZE**2, np.eye(5), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("align", [name for name in ALIGNMENTS if name != "none"])
def test_an_average_reference_leaves_a_direction_less_and_nothing_explodes(align, method):
    if method == "riemann":
        pytest.importorskip("pyriemann")
    trials, x = person(reference=True)
    matrices = aligning_matrices(trials, lambda t: x[t.key], align, method)
    aligned = np.stack([matrices[t.key] @ x[t.key] for t in trials])
    assert np.isfinite(aligned).all() and 0.3 * SIZE < aligned.std() < 3 * SIZE
    if method != "zscore":
        assert np.abs(aligned.sum(axis=1)).max() < 1e-2 * SIZE  # still on the average of all electrodes


@pytest.mark.parametrize("method", METHODS)
def test_causal_alignment_of_a_trial_is_bit_equal_whatever_comes_after(method):
    if method == "riemann":
        pytest.importorskip("pyriemann")
    trials, x = person(n=30)
    before = aligning_matrices(trials, lambda t: x[t.key], "causal", method)
    first = [t for t in trials if t.session == "T"]
    later = {t.key for t in first[12:]}
    rng = np.random.default_rng(1)
    other = {key: 500 * rng.standard_normal(of.shape).astype("<f4") if key in later else of for key, of in x.items()}
    after = aligning_matrices(trials, lambda t: other[t.key], "causal", method)
    fewer = aligning_matrices(first[:12], lambda t: x[t.key], "causal", method)
    for trial in first[:12]:
        assert np.array_equal(before[trial.key], after[trial.key])
        assert np.array_equal(before[trial.key], fewer[trial.key])
    assert not any(np.array_equal(before[t.key], after[t.key]) for t in first[12:])
    # the second session begins anew
    assert all(np.array_equal(before[t.key], after[t.key]) for t in trials if t.session == "E")


def test_causal_alignment_comes_to_that_of_the_whole_session_at_its_end():
    trials, x = person(sessions="T")
    causal, whole = (
        aligning_matrices(trials, lambda t: x[t.key], align, "euclidean") for align in ("causal", "session")
    )
    assert np.allclose(causal[trials[-1].key], whole[trials[-1].key], rtol=1e-5)
    assert not np.allclose(causal[trials[3].key], whole[trials[3].key], rtol=0.05)


def test_the_mean_of_few_trials_is_shrunk_as_if_two_more_had_been_alike_in_all_directions():
    trials, x = person(n=6, sessions="T")
    matrices = aligning_matrices(trials, lambda t: x[t.key], "causal", "euclidean")
    for n in (1, 2, 6):
        mean = np.mean([covariance(x[t.key]) for t in trials[:n]], axis=0)
        matrix = matrices[trials[n - 1].key].astype(float)
        before, after = (np.ptp(np.log(np.linalg.eigvalsh(of))) for of in (mean, matrix @ mean @ matrix))
        assert after == pytest.approx(before * 2 / (2 + n), rel=1e-2)


def test_an_offset_of_an_electrode_is_no_size_of_it():
    trials, x = person(n=4)
    offset = {key: of + np.array([[1000.0], [0], [-500], [0], [20]], "<f4") for key, of in x.items()}
    one, other = (aligning_matrices(trials, lambda t, of=of: of[t.key], "session", "euclidean") for of in (x, offset))
    assert all(np.allclose(one[key], other[key], atol=1e-4) for key in one)


def test_a_trial_alone_is_brought_to_one_size_and_keeps_its_shape():
    trials, x = person()
    matrices = aligning_matrices(trials, lambda t: x[t.key], "trial", "euclidean")
    for trial in trials[:3]:
        aligned = matrices[trial.key] @ x[trial.key]
        assert np.allclose(aligned / x[trial.key], aligned[0, 0] / x[trial.key][0, 0], rtol=1e-4)
        assert np.isclose(np.trace(covariance(aligned)), 5 * SIZE**2, rtol=1e-4)


def test_people_whose_electrodes_are_scaled_otherwise_become_alike(monkeypatch):
    monkeypatch.setattr(alignment, "PRIOR", 0.0)
    trials, x = person(n=60, sessions="T")
    louder = {key: np.array([[1.0], [5], [0.2], [30], [1]], "<f4") * of for key, of in x.items()}
    for method in ("euclidean", "zscore"):
        one, other = (aligning_matrices(trials, lambda t, of=of: of[t.key], "session", method) for of in (x, louder))
        a, b = ([m[t.key] @ of[t.key] for t in trials] for m, of in ((one, x), (other, louder)))
        covariances = [np.mean([covariance(trial) for trial in of], axis=0) for of in (a, b)]
        assert np.allclose(*covariances, atol=0.1 * SIZE**2), method
    assert not np.allclose(*(np.mean([covariance(of[t.key]) for t in trials], axis=0) for of in (x, louder)), rtol=0.5)


def test_flat_trials_do_not_divide_by_zero():
    trials, x = person(n=4)
    flat = {key: np.zeros_like(of) for key, of in x.items()}
    for align in ("trial", "causal", "session", "person"):
        matrices = aligning_matrices(trials, lambda t: flat[t.key], align, "euclidean")
        assert all(np.isfinite(matrix).all() for matrix in matrices.values())


@pytest.mark.parametrize("align", ["causal", "session"])
@pytest.mark.parametrize("gone", [(0, slice(None)), (3, slice(None)), (0, 1)])
def test_a_flat_trial_or_electrode_leaves_the_riemannian_mean_of_the_others(align, gone):
    pytest.importorskip("pyriemann")
    trials, x = person(n=20, sessions="T")
    trial, electrodes = gone
    flat = {key: of.copy() for key, of in x.items()}
    flat[trials[trial].key][electrodes] = 0
    matrices = aligning_matrices(trials, lambda t: flat[t.key], align, "riemann")
    sizes = np.array([(matrices[t.key] @ x[t.key]).std(axis=1) for t in trials[-5:]])  # (5, C)
    assert (sizes > 0.5 * SIZE).all() and (sizes < 2 * SIZE).all()
    if align == "causal":  # the flat trial is the last one of these, or the only one
        fewer = aligning_matrices(trials[: trial + 1], lambda t: flat[t.key], align, "riemann")
        assert all(np.array_equal(fewer[key], matrices[key]) for key in fewer)


@pytest.mark.parametrize("align", [name for name in ALIGNMENTS if name != "none"])
def test_a_trial_that_holds_nan_is_named(align):
    trials, x = person(n=4)
    x[trials[2].key][0, 7] = np.nan
    with pytest.raises(UserError, match=f"--align {align}: trial {trials[2].key} holds NaN or infinity"):
        aligning_matrices(trials, lambda t: x[t.key], align, "euclidean")


# ---------------------------------------------------------------- what is used


def test_what_is_used_together_is_the_most_of_it_and_labels_stand_apart():
    nothing, alone, causal, whole = (ALIGNMENTS[name].uses for name in ("none", "trial", "causal", "session"))
    assert used_together(nothing) == nothing == USES[0] and used_together(alone, causal, nothing) == causal
    assert used_together(whole, causal) == whole and ALIGNMENTS["person"].uses == whole
    assert used_together(LABELLED, nothing) == LABELLED and used_together(LABELLED, whole) == f"{LABELLED}; {whole}"
    assert ALIGNMENTS["session"].moabb == "train_and_target_unlabeled_full" and ALIGNMENTS["none"].moabb == "train"


# ---------------------------------------------------------------- trials as a run reads them


@pytest.fixture
def store(tmp_path):
    rng, part = np.random.default_rng(0), []
    for k, who in enumerate(("A01", "A06", "A08")):
        trials, _ = person(n=20, n_chans=22, subject=who, sessions="T")
        t = np.arange(500) / 250
        for trial in trials:
            noise = (1 + k) * 20 * rng.standard_normal((22, 500))
            part.append((trial, (noise + 40 * np.sin(2 * np.pi * 60 * t)).astype("<f4")))
    write_store(tmp_path / "store", {"dataset": "BCICIV2a", "sfreq": 250.0}, [part])
    return tmp_path / "store"


def test_a_run_reads_aligned_trials_in_all_splits_and_says_what_it_used(store):
    splits = load_splits(store, BCIC, "published", {"align": "session"})
    plain = load_splits(store, BCIC, "published")
    for mode, dataset in splits.items():
        mean = np.mean([covariance(item["x"].numpy()) for item in dataset], axis=0)
        assert 0.85 * SIZE**2 < np.diag(mean).mean() < 1.15 * SIZE**2
        assert dataset.uses == "all trials, unlabelled (transductive)" and dataset.facts["align"] == "session"
        assert plain[mode].uses == "nothing" and plain[mode][0]["x"].std() > 2 * SIZE
    assert splits["test"].shuffled(0).uses == splits["test"].uses
    assert np.array_equal(splits["test"].shuffled(0)[0]["x"], splits["test"][0]["x"])


def test_labelled_trials_of_the_test_person_are_said(store):
    later = TrialDataset(store, "test", "later:A01", BCIC)
    assert later.uses == LABELLED
    assert later.part(align="causal").uses == f"{LABELLED}; earlier trials, unlabelled (causal)"


def test_covariances_are_those_of_what_is_read(store):
    dataset = TrialDataset(store, "train", "published", BCIC)
    part = {"window": (0.5, 1.5), "regions": ["parietal"], "band": (8, 30)}
    aligned = dataset.part(**part, align="session")
    mean = np.mean([covariance(item["x"].numpy()) for item in aligned], axis=0)
    n = len(aligned.montage.electrodes)
    assert mean.shape == (n, n) and 1 < n < 22
    assert 0.8 * SIZE**2 < np.diag(mean).mean() < 1.2 * SIZE**2


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e7])
def test_the_token_cache_tells_alignments_apart_whatever_the_unit(tmp_path, unit):
    trials, x = person(n=6, n_chans=22, subject="A01")
    rows = [(t, (unit * x[t.key]).astype("<f4")) for t in trials]
    write_store(tmp_path / "store", {"dataset": "BCICIV2a", "sfreq": 250.0}, [rows])
    dataset = TrialDataset(tmp_path / "store", "train", "published", BCIC)
    parts = [dataset.part(align=align) for align in ALIGNMENTS]
    assert len({str(part.changes(part.trials)) for part in parts}) == len(ALIGNMENTS)


def test_a_band_is_what_a_run_reads_of_the_stored_trial(store):
    dataset = TrialDataset(store, "train", "published", BCIC)
    power = lambda d: np.mean([np.abs(np.fft.rfft(item["x"].numpy()[0])) ** 2 for item in d], axis=0)  # noqa: E731
    before, after = power(dataset), power(dataset.part(band=(8, 30)))
    hz = np.fft.rfftfreq(500, 1 / 250)
    assert after[hz == 60] < 1e-4 * before[hz == 60] and np.allclose(after[hz == 18], before[hz == 18], rtol=0.1)
    cut = dataset.part(band=(8, 30), window=(0.5, 1.5))
    assert np.array_equal(cut[0]["x"], dataset.part(band=(8, 30))[0]["x"][:, 125:375])


@pytest.mark.parametrize("band", [(30, 8), (8, 200), (8, 125), (0.2, 30)])
def test_a_band_that_trials_cannot_have_is_refused(store, band):
    with pytest.raises(UserError, match=f"--band {band[0]} {band[1]}: "):
        TrialDataset(store, "train", "published", BCIC).part(band=band)


@pytest.mark.parametrize("align", ["none", "trial"])
def test_a_mean_of_nothing_is_refused(store, align):
    with pytest.raises(UserError, match=f"--align_method riemann is of a mean over trials; --align {align} makes none"):
        TrialDataset(store, "train", "published", BCIC).part(align=align, align_method="riemann")


def test_without_an_effect_no_condition_tells_anything():
    """1,000 null experiments a condition: noise, mixed otherwise in each person and session; another one is tested."""
    rng, right, n = np.random.default_rng(0), dict.fromkeys(ALIGNMENTS, 0), 1000
    for _ in range(n):
        people = [person(n=4, n_chans=2, seed=rng.integers(1 << 30), subject=who) for who in ("P1", "P2")]
        labels = [rng.integers(2, size=len(trials)) for trials, _ in people]
        for align in ALIGNMENTS:
            power = []
            for trials, x in people:
                matrices = (
                    {} if align == "none" else aligning_matrices(trials, lambda t, x=x: x[t.key], align, "euclidean")
                )
                power.append([np.log(np.var(matrices.get(t.key, np.eye(2)) @ x[t.key], axis=-1)) for t in trials])
            trained, tested = map(np.array, power)
            means = [trained[labels[0] == k].mean(axis=0) if k in labels[0] else trained.mean(axis=0) for k in (0, 1)]
            distance = [np.square(tested - mean).sum(axis=1) for mean in means]
            right[align] += int(((distance[1] < distance[0]) == labels[1]).sum())
    for align, hits in right.items():
        assert abs(hits / (8 * n) - 0.5) < 3 * np.sqrt(0.25 / (8 * n)), (align, hits / (8 * n))


def test_what_was_whitened_keeps_the_size_of_one(tmp_path):
    """THINGS is whitened to no unit: encoders expect deviations of one, and multiply where they read microvolts."""
    trials, x = person(n_chans=22)
    whitened = [(trial, x[trial.key] / 30) for trial in trials]
    for units, size in (("microvolts", SIZE), ("no unit", 1.0)):
        write_store(tmp_path / units, {"sfreq": 200.0, "dataset": "BCICIV2a", "units": units}, [whitened])
        dataset = TrialDataset(tmp_path / units, "test", "later:P1", BCIC)
        for align in [name for name in ALIGNMENTS if name != "none"]:
            aligned = dataset.part(align=align)
            sizes = [aligned.samples(trial).std() for trial in aligned.trials]
            assert np.median(sizes) == pytest.approx(size, rel=0.3), (units, align)

"""One pass over the samples of a store, and what the audit's checks need of it."""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.special import entr
from scipy.stats import beta

from datasets.recording import Trial, origin
from utils.errors import UserError
from utils.progress import progress

LARGEST = 1e12  # microvolts; squares of what is larger leave float32
BANDS = (1.0, 4.0, 8.0, 13.0, 30.0, 45.0)  # Hz; δ, θ, α, β and low γ lie between them
SPECTRUM = (2.0, 45.0)  # Hz, of the spectra that copies are looked for by
LEAST_BINS = 60  # frequencies that tell a trial from others; shorter trials read up to 0.45 of the sampling rate
SOME = 512  # trials that are transformed at once
SKETCH = 512  # directions from which a trial's spectra are seen


@dataclass
class Summaries:
    """What one pass over the samples leaves; a row a trial, and a recording is a person's session and run."""

    mean: np.ndarray  # (N, C) microvolts, of each electrode
    first: np.ndarray  # (N, C) microvolts: its first and its last sample
    last: np.ndarray
    bits: np.ndarray  # (N, 8 + 2 C): how often each of 8 lowest bits is set; lowest byte of first and last samples
    constant: np.ndarray  # (N, 2 C): which electrodes do not change within the trial, and their value
    flat: np.ndarray  # (N, 16): share of samples that are their predecessor's, in each sixteenth of a trial
    sketch: np.ndarray  # (N, 24): the trial, each electrode standardised, seen from 24 fixed directions
    energies: np.ndarray  # (N, C, B): logarithm of the energy in each of `BANDS`, relative to µV²
    profile: np.ndarray  # (N, F): logarithm of the amplitude at each whole Hz of `SPECTRUM`, mean over electrodes
    spectra: np.ndarray  # (N, 512) float32: what is a trial's own in its electrodes' spectra, from fixed directions
    layout: np.ndarray  # (N, 2 F) float32: the same of mean and deviation over electrodes, whatever their order
    spread: np.ndarray  # (N, C): deviation within each trial
    deviation: np.ndarray  # (C,) of each electrode over all trials
    reach: np.ndarray  # (C,) largest minus smallest
    railed: np.ndarray  # (C,) number of samples at the largest value, or at the smallest, whichever is more
    pooled_mean: np.ndarray  # (C,)
    # (person, session, run, split) → n, (C,) sums of means, (C, C) of covariances within trials, of raw products
    moments: dict
    written: float  # the largest share of one sample's variance, or of one of its low bits', that is between classes
    typical: float  # the median sample's
    chance: float  # what the largest may reach by chance
    # the lesser of the largest shares beside it: at this electrode up to 8 samples away, and at the others; a brain's
    # response is in both
    beside: float
    where: str  # the sample of the largest


def summarise(store, trials: Sequence[Trial], mode_of: dict[str, str] | None = None) -> Summaries:
    """One pass over all samples of a store. `mode_of`: the split of each trial by its key, for `moments`."""
    n_chans, n_times = store.shape
    directions = np.random.default_rng(0).standard_normal((n_chans * n_times, 24)).astype(np.float32)
    bins = own_bins(n_times, store.sfreq)
    of_spectra = np.random.default_rng(1).standard_normal((n_chans * len(bins), SKETCH)).astype(np.float32)
    rows, moments = defaultdict(list), {}
    total, squares, n = np.zeros(n_chans), np.zeros(n_chans), len(trials) * n_times
    ends = {sign: (np.full(n_chans, -np.inf), np.zeros(n_chans, int)) for sign in (1, -1)}  # largest, and how often
    values, bits = _BetweenClasses((n_chans, n_times)), _BetweenClasses((4, n_chans, n_times))
    recordings = defaultdict(list)
    for place, trial in enumerate(trials):
        recordings[origin(trial)[:3]].append(place)
    with progress(total=len(trials), desc="reading", unit="trial", leave=False) as bar:
        for recording, places in recordings.items():
            x = np.stack([store.read(trials[k]) for k in places]).astype(np.float32)  # (n, C, T)
            if not (np.abs(x) < LARGEST).all():
                words = f"a trial of {trials[places[0]].subject} holds NaN, or more than {LARGEST:.0e} microvolts"
                raise UserError(f"{store.path}: {words}")
            labels = np.array([trials[k].label for k in places])
            loud = x.std(axis=2, keepdims=True)  # else one loud trial decides
            values.add(x / np.where(loud > 0, loud, 1), labels)
            bits.add(np.stack([(x.view(np.uint32) >> b) & 1 for b in range(4)], axis=1).astype(np.float32), labels)
            of_trials = _rows_of_trials(x, directions) | _spectra_of_trials(x, store.sfreq, bins, of_spectra)
            for name, part in of_trials.items():
                rows[name].append(part)
            modes = np.array([(mode_of or {}).get(trials[k].key, "") for k in places])
            moments |= {(*recording, mode): _moments(x[modes == mode]) for mode in dict.fromkeys(modes.tolist())}
            ends = {sign: _more_ends(*of, sign * x) for sign, of in ends.items()}
            total += x.sum(axis=(0, 2), dtype=float)
            squares += np.square(x, dtype=float).sum(axis=(0, 2))
            bar.update(len(places))
    back = np.argsort(np.concatenate(list(recordings.values())))
    n_classes = len(values.sums)
    left = max(len(trials) - len(recordings) - n_classes + 1, 1)  # degrees of freedom
    by_chance = _by_chance(n_classes, left, 5 * n_chans * n_times)  # a value and four bits of each sample
    found = zip((values, bits), by_chance, ("the value", "a low bit"), strict=True)
    which, chance, kind = max(found, key=lambda one: one[0].largest()[0] - one[1])
    written, (*_, electrode, sample) = which.largest()
    mean = total / n
    return Summaries(
        **{name: np.concatenate(parts)[back] for name, parts in rows.items()},
        pooled_mean=mean,
        deviation=np.sqrt(np.maximum(squares / n - mean**2, 0)),
        reach=ends[1][0] + ends[-1][0],
        railed=np.maximum(ends[1][1], ends[-1][1]),
        moments=moments,
        written=written,
        typical=values.typical(),
        chance=chance,
        beside=which.beside(),
        where=f"{kind} of electrode {electrode + 1}, sample {sample + 1}",
    )


def _more_ends(most: np.ndarray, often: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) largest values of all trials, those of x (n, C, T) among them, and how many samples have them."""
    largest = x.max(axis=(0, 2))
    now = (x == largest[:, None]).sum(axis=(0, 2))
    return np.maximum(most, largest), np.where(largest > most, now, np.where(largest == most, often + now, often))


def _by_chance(n_classes: int, left: int, n_places: int) -> tuple[float, float]:
    """What the largest of `n_places` shares may reach by chance, of values and of bits; inf where it may be all.

    A bit is the same in all trials of each class by chance in one of 2 ** left places, however far beyond that a share
    of Gaussian values would be: the bound of bits is that of their mutual information with two classes.
    """
    shares = np.linspace(0, 1, 1001)
    p = (1 - np.sqrt(shares)) / 2
    information = np.log(2) - entr(p) - entr(1 - p)  # nats a trial
    bits = np.interp(np.log(1e6 * n_places) / left, information, shares, right=np.inf)
    return float(beta.isf(1e-6 / n_places, (n_classes - 1) / 2, left / 2)), float(bits)


def _rows_of_trials(x: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
    """Those fields of `Summaries` that have a row a trial, of the trials (n, C, T) of a recording."""
    first, last = x[:, :, 0].copy(), x[:, :, -1].copy()  # no views: they would keep all samples
    bits = x.view(np.uint32)
    share = np.stack([((bits >> b) & 1).mean(axis=(1, 2)) for b in range(8)], axis=1)
    still = x.max(axis=2) == x.min(axis=2)
    held = np.array_split(np.diff(x) == 0, 16, axis=2)
    return {
        "mean": x.mean(axis=2),
        "spread": x.std(axis=2),
        "first": first,
        "last": last,
        "bits": np.concatenate([share, bits[:, :, 0] & 255, bits[:, :, -1] & 255], axis=1),
        "constant": np.concatenate([still, np.where(still, first, 0)], axis=1),
        "flat": np.stack([part.mean(axis=(1, 2)) for part in held], axis=1)
        if x.shape[2] > 16
        else np.zeros((len(x), 0)),
        "sketch": standardised(x).reshape(len(x), -1) @ directions / np.sqrt(len(directions)),
    }


def own_bins(n_times: int, sfreq: float, padded: int = 1) -> np.ndarray:
    """Places of the frequencies that tell a trial from others, among those of `np.fft.rfft` of a trial.

    padded : int. How many times longer than the trial the transform is.
    """
    hz = np.fft.rfftfreq(padded * n_times, 1 / sfreq)
    enough = (SPECTRUM[1] - SPECTRUM[0]) * n_times / sfreq >= LEAST_BINS
    return np.flatnonzero((hz >= SPECTRUM[0]) & (hz <= (min(SPECTRUM[1], 0.45 * sfreq) if enough else 0.45 * sfreq)))


def _spectra_of_trials(x: np.ndarray, sfreq: float, bins: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
    """Band energies, and what is a trial's own in its spectra, of the trials (n, C, T) of a recording.

    A shift in time leaves amplitudes alone, and a filter changes them alike in all trials, and slowly from one
    frequency to the next; so what all trials of the recording share is taken off, and a running mean.
    """
    n_times, hz = x.shape[2], np.fft.rfftfreq(x.shape[2], 1 / sfreq)
    window = np.hanning(n_times + 2)[1:-1].astype(np.float32)
    parts = np.array_split(x, max(1, len(x) // SOME))
    spectra = (np.abs(np.fft.rfft(standardised(part) * window)).astype(np.float32) for part in parts)
    log = np.concatenate([np.log(spectrum + 1e-6) for spectrum in spectra])  # (n, C, F)
    loud = np.log(x.var(axis=2) + 1e-12)
    inside = [(hz >= low) & (hz < high) for low, high in pairwise(BANDS)]
    energies = [np.log(np.exp(2 * log[..., b]).mean(axis=2) + 1e-12) + loud for b in inside if b.any()]
    whole = [np.round(hz) == f for f in np.arange(*SPECTRUM)]
    profile = [(log[..., b].mean(axis=2) + loud / 2).mean(axis=1) for b in whole if b.any()]

    def own(spectra: np.ndarray) -> np.ndarray:  # (…, F), trials first
        spectra = spectra - uniform_filter1d(spectra, 9, axis=-1, mode="nearest")
        spectra = spectra - spectra.mean(axis=0)
        return np.clip(spectra / (spectra.std(axis=0) + 1e-6), -2.5, 2.5).reshape(len(spectra), -1)

    log = log[..., bins]
    return {
        "energies": np.stack(energies, axis=2) if energies else np.zeros((*x.shape[:2], 0)),
        "profile": np.stack(profile, axis=1) if profile else np.zeros((len(x), 0)),
        "spectra": own(log) @ directions / np.sqrt(max(len(directions), 1)),
        "layout": np.concatenate([own(log.mean(axis=1)), own(log.std(axis=1))], axis=1),
    }


def _moments(x: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Number, sums over trials (n, C, T) of means, of covariances within trials, and of raw products, over time."""
    mean, raw = x.mean(axis=2, dtype=float), 0.0
    for part in np.array_split(x, max(1, len(x) // SOME)):
        electrodes = part.transpose(1, 0, 2).reshape(x.shape[1], -1).astype(float)  # (C, n T)
        raw = raw + electrodes @ electrodes.T / x.shape[2]
    return len(x), mean.sum(axis=0), raw - mean.T @ mean, raw


class _BetweenClasses:
    """The share of variance between classes, place by place; each recording is centred first. Sums in float64."""

    def __init__(self, shape: tuple):
        self.squares, self.sums, self.counts = np.zeros(shape), defaultdict(lambda: np.zeros(shape)), Counter()

    def add(self, x: np.ndarray, labels: np.ndarray) -> None:
        x = x.astype(float) - x.mean(axis=0, dtype=float)
        self.squares += np.square(x).sum(axis=0)
        for label in set(labels.tolist()):
            self.sums[label] += x[labels == label].sum(axis=0)
            self.counts[label] += int((labels == label).sum())

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """Of all places; asked for when all recordings are there."""
        between = sum(np.square(total) / self.counts[label] for label, total in self.sums.items())
        return np.divide(between, self.squares, out=np.zeros_like(self.squares), where=self.squares > 1e-12)

    def largest(self) -> tuple[float, tuple]:
        """The largest share and where it is; places that never change within a recording have none."""
        share = self.shares
        place = np.unravel_index(np.argmax(share), share.shape)
        return float(share[place]), place

    def beside(self) -> float:
        """See `Summaries`; of an electrode alone, in time alone."""
        share, (_, (*before, electrode, sample)) = self.shares, self.largest()
        around = share[tuple(before)][:, max(sample - 8, 0) : sample + 9]  # (C, up to 17)
        far = np.abs(np.arange(around.shape[1]) - min(sample, 8)) > 1
        others = np.delete(around, electrode, axis=0)
        return float(min(around[electrode, far].max(initial=0), others.max() if len(others) else 1))

    def typical(self) -> float:
        """The median place's share."""
        return float(np.median(self.shares))


def standardised(x: np.ndarray) -> np.ndarray:
    """(…, C, T) with mean 0 and deviation 1 of each electrode; one that does not change is 0."""
    return (x - x.mean(axis=-1, keepdims=True)) / np.maximum(x.std(axis=-1, keepdims=True), 1e-6)

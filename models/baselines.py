"""Baselines that stand beside every decoder: what a constant, the recording, a classical method or a small net gives.

A baseline has `fit(train, val)` and `predict(data)` → (N, K) probabilities. What it reads is its `reads`: "signal",
(N, C, T) in microvolts; "tokens", (N, n, D); "features", (N, 5 · C) differential entropy; or "trials", no signal.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt, welch
from scipy.special import softmax
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn import functional as F

from models.token_encoders import EEGNet, ShallowFBCSPNet
from utils.covariances import riemannian_means
from utils.errors import UserError, loading
from utils.progress import progress
from utils.seeds import seed_everything
from utils.signals import resample

# least seconds of a trial: for power by band and filters; for an evoked response
OF_RHYTHMS, OF_EVOKED = 0.5, 0.2
BANDS = ((4, 8), (8, 13), (13, 20), (20, 30), (30, 45))  # Hz: theta, alpha (mu), low and high beta, gamma
# Hz: what CSP and the tangent space read, as in Blankertz et al., IEEE Signal Process. Mag. 25, 2008
RHYTHMS = (8, 30)
FILTER_BANK = [(low, low + 4) for low in range(4, 40, 4)]  # Hz
EVOKED_RATE = 32  # Hz: what is read of an evoked response


@dataclass
class Data:
    """Trials as a baseline reads them."""

    x: np.ndarray | None  # (N, …) float32: microvolts (N, C, T) or tokens (N, n, D); None for what reads no signal
    labels: np.ndarray  # (N,) int
    recordings: Sequence[tuple]  # (session, run): the kind of recording, whoever it is of
    sfreq: float  # Hz
    groups: Sequence[Sequence[int]] = ()  # places of the trials that are aligned together, in the order of recording
    causal: bool = False  # whether each is aligned by itself and those before it alone

    def __len__(self) -> int:
        return len(self.labels)


# ---------------------------------------------------------------- without a signal


def _shares(labels: Sequence[int], n_classes: int) -> np.ndarray:
    return np.bincount(labels, minlength=n_classes) / len(labels)


class BestConstant:
    """The most frequent class of the training trials, always."""

    reads = "trials"

    def __init__(self, n_classes: int, **_):
        self.n_classes = n_classes

    def fit(self, train: Data, val: Data) -> None:
        self.shares = _shares(train.labels, self.n_classes)

    def predict(self, data: Data) -> np.ndarray:
        return np.tile(self.shares, (len(data), 1))


class RecordingOnly(BestConstant):
    """The most frequent class of this kind of recording (session and run) in the training trials."""

    def fit(self, train: Data, val: Data) -> None:
        super().fit(train, val)
        by_recording = defaultdict(list)
        for recording, label in zip(train.recordings, train.labels, strict=True):
            by_recording[recording].append(label)
        self.shares_of = {key: _shares(labels, self.n_classes) for key, labels in by_recording.items()}

    def predict(self, data: Data) -> np.ndarray:
        return np.stack([self.shares_of.get(recording, self.shares) for recording in data.recordings])


# ---------------------------------------------------------------- classical methods


class Classical:
    """What a split's features are, and steps of scikit-learn's, the last one a classifier.

    features : callable. `Data` → (N, …) array that the first step reads.
    least : float. Seconds that a trial must last.
    Raises UserError where trials are shorter, or those of training are of one class.
    """

    def __init__(self, n_classes: int, features: Callable, *steps, least: float = OF_RHYTHMS, reads: str = "signal"):
        self.n_classes, self.features, self.steps, self.least, self.reads = n_classes, features, steps, least, reads

    def fit(self, train: Data, val: Data) -> None:
        n_times = train.x.shape[-1]
        if self.reads == "signal" and n_times < self.least * train.sfreq:
            few = f"{n_times} samples, expected {self.least} s or more"
            raise UserError(f"trials are too short for this baseline: {few}")
        if len(np.unique(train.labels)) < 2:
            raise UserError("this baseline needs training trials of two classes or more")
        self.pipeline = make_pipeline(*self.steps).fit(self.features(train), train.labels)

    def predict(self, data: Data) -> np.ndarray:
        """(N, K) probabilities; of a classifier that gives scores only, their softmax; 0 for a class unseen so far."""
        result = np.zeros((len(data), self.n_classes))
        if len(data):
            x, has_p = self.features(data), hasattr(self.pipeline, "predict_proba")
            p = self.pipeline.predict_proba(x) if has_p else self.pipeline.decision_function(x)
            p = np.stack([-p, p], axis=1) if p.ndim == 1 else p  # two classes have one score
            result[:, self.pipeline.classes_] = p if has_p else softmax(p, axis=1)
        return result


def of_signal(features: Callable) -> Callable[[Data], np.ndarray]:
    """A function of (N, C, T) float64 and its rate in Hz, as one of `Data`."""
    return lambda data: features(np.asarray(data.x, np.float64), data.sfreq)


def band_power(x: np.ndarray, sfreq: float) -> np.ndarray:
    """(N, C, T) → (N, C · bands) logarithm of each band's power (Welch, windows of a second)."""
    frequencies, density = welch(x, sfreq, nperseg=min(round(sfreq), x.shape[-1]))
    bands = [(frequencies >= low) & (frequencies < high) for low, high in BANDS if low < sfreq / 2]
    return np.concatenate([np.log(density[..., band].mean(-1) + 1e-12) for band in bands], axis=1)


def filtered(x: np.ndarray, sfreq: float, band: tuple[float, float] = RHYTHMS) -> np.ndarray:
    """(N, C, T) in a band, by default between 8 and 30 Hz, without a shift in time."""
    return sosfiltfilt(butter(4, band, "bandpass", fs=sfreq, output="sos"), x, axis=-1)


def bandpower_lda(n_classes: int, **_) -> Classical:
    """Logarithm of band power and linear discriminant analysis with shrinkage."""
    return Classical(n_classes, of_signal(band_power), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))


def csp_lda(n_classes: int, **_) -> Classical:
    """Common spatial patterns (6 components, 8–30 Hz) and linear discriminant analysis."""
    import mne  # slow to import

    mne.set_log_level("ERROR")
    csp = mne.decoding.CSP(n_components=6, reg="oas", log=True)
    return Classical(n_classes, of_signal(filtered), csp, LinearDiscriminantAnalysis())


def recentred(covariances: np.ndarray, groups: Sequence[Sequence[int]], causal: bool) -> np.ndarray:
    """(N, C, C), each group's brought to the identity by their Riemannian mean (Zanini et al., 2018).

    groups : sequences of places, in the order of recording. causal : bool. By the mean of those up to each.
    """
    from pyriemann.geometry.base import invsqrtm  # slow to import

    result = covariances.copy()
    for group in map(list, groups):
        roots = invsqrtm(riemannian_means(covariances[group], causal))
        result[group] = roots @ covariances[group] @ roots
    return result


def covariances_of(bands: Sequence[tuple[float, float]], data: Data) -> np.ndarray:
    """(N, B, C, C) in those of the bands that the rate can hold; recentred band by band where trials are aligned.

    One matrix for all bands would bring none of them to the identity.
    """
    from pyriemann.estimation import Covariances

    x, held = np.asarray(data.x, np.float64), [band for band in bands if band[1] < data.sfreq / 2]
    made = [Covariances("oas").transform(filtered(x, data.sfreq, band)) for band in held]
    return np.stack([recentred(of_band, data.groups, data.causal) for of_band in made], axis=1)


class BandSpaces(TransformerMixin, BaseEstimator):
    """(N, B, C, C) covariances → (N, …), each band's in the tangent space of its Riemannian mean, side by side."""

    def fit(self, x: np.ndarray, y: np.ndarray | None = None) -> "BandSpaces":
        from pyriemann.tangentspace import TangentSpace

        self.spaces = [TangentSpace("riemann").fit(x[:, band]) for band in range(x.shape[1])]
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([space.transform(x[:, band]) for band, space in enumerate(self.spaces)], axis=1)


def tangent_spaces(bands: Sequence[tuple[float, float]], c: float, n_classes: int, **_) -> Classical:
    """Covariances in the tangent spaces of some bands in Hz; logistic regression of inverse regularisation `c`.

    Barachant et al., Neurocomputing 112, 2013.
    """
    logistic = LogisticRegression(max_iter=2000, C=c)
    return Classical(n_classes, partial(covariances_of, bands), BandSpaces(), StandardScaler(), logistic)


# one band, 8 to 30 Hz
tangent_space = partial(tangent_spaces, [RHYTHMS], 0.1)
# the nine bands of Ang et al., IJCNN 2008
filterbank_tangent = partial(tangent_spaces, FILTER_BANK, 0.01)


def evoked(x: np.ndarray, sfreq: float) -> np.ndarray:
    """(N, C, T) → (N, C, bins): means over a 32nd of a second, which keep what lies below some 15 Hz."""
    size = max(1, round(sfreq / EVOKED_RATE))
    n = x.shape[-1] // size
    return x[..., : n * size].reshape(*x.shape[:-1], n, size).mean(axis=-1)


def samples_lda(n_classes: int, **_) -> Classical:
    """Time samples and linear discriminant analysis with shrinkage (Blankertz et al., NeuroImage 56, 2011)."""
    flat = FunctionTransformer(lambda x: x.reshape(len(x), -1))
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return Classical(n_classes, of_signal(evoked), flat, lda, least=OF_EVOKED)


def xdawn_tangent(n_classes: int, **_) -> Classical:
    """Covariances with each class's evoked response, filtered by xDAWN, in tangent space; logistic regression.

    Barachant & Congedo, 2014 (arXiv 1409.0107); Rivet et al., IEEE Trans. Biomed. Eng. 56, 2009.
    """
    from pyriemann.estimation import XdawnCovariances
    from pyriemann.tangentspace import TangentSpace

    covariances = XdawnCovariances(nfilter=4, estimator="oas", xdawn_estimator="oas")
    logistic = LogisticRegression(max_iter=2000, C=0.1)
    steps = covariances, TangentSpace("riemann"), StandardScaler(), logistic
    return Classical(n_classes, of_signal(evoked), *steps, least=OF_EVOKED)


# ---------------------------------------------------------------- EEG-ImageNet's, on differential entropy


def on_features(make: Callable, n_classes: int, seed: int = 0, **_) -> Classical:
    """A classifier of scikit-learn's, which `make(seed)` gives, on standardised features."""
    return Classical(n_classes, attrgetter("x"), StandardScaler(), make(seed), reads="features")


ridge = partial(on_features, lambda seed: RidgeClassifier())
knn = partial(on_features, lambda seed: KNeighborsClassifier(5))
forest = partial(on_features, lambda seed: RandomForestClassifier(200, random_state=seed))
svm = partial(on_features, lambda seed: LinearSVC(random_state=seed))


# ---------------------------------------------------------------- trained by gradient


@dataclass
class Trained:
    """A network trained with AdamW; of its epochs the one with the best validation accuracy, the earlier of equals."""

    net: Callable  # (shape of one input, n_classes, sfreq) → nn.Module, input → logits (B, K)
    reads: str
    n_classes: int
    seed: int
    epochs: int
    device: torch.device
    weight_decay: float = 0.01
    augment: Sequence[Callable] = ()  # what changes a training batch (B, …) and its labels
    sfreq: float | None = None  # Hz that the network wants its signal at
    lr, batch_size = 1e-3, 64  # of all networks

    def _at_its_rate(self, data: Data) -> np.ndarray:
        return data.x if self.sfreq is None else resample(data.x, data.sfreq, self.sfreq)

    def _standard(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray((x - self.mean) / self.sd, np.float32))

    def fit(self, train: Data, val: Data) -> None:
        seed_everything(self.seed)
        x, axes = self._at_its_rate(train), (0, 2) if self.reads == "signal" else 0
        self.mean, self.sd = x.mean(axis=axes, keepdims=True), x.std(axis=axes, keepdims=True) + 1e-6
        x, y, x_val = self._standard(x), torch.from_numpy(train.labels), self._standard(self._at_its_rate(val))
        self.model = self.net(tuple(x.shape[1:]), self.n_classes, self.sfreq or train.sfreq).to(self.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), self.lr, weight_decay=self.weight_decay)
        self.history, highest, kept = [], -1.0, None
        for epoch in progress(range(1, self.epochs + 1), desc="training", unit="epoch"):
            seed_everything(self.seed, epoch)
            loss = self._train_epoch(x, y, optimizer)
            accuracy = float(epoch)  # without validation the last epoch is the best
            if len(val):
                accuracy = float((self._probabilities(x_val).argmax(axis=1) == val.labels).mean())
            self.history.append({"epoch": epoch, "train_loss": loss, "accuracy": accuracy})
            if accuracy > highest:
                highest, self.best, kept = accuracy, epoch, copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(kept)

    def _train_epoch(self, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
        self.model.train()
        losses = []
        for batch in torch.randperm(len(x)).split(self.batch_size):
            if len(batch) < 2:  # batch normalisation needs two
                continue
            x_batch, y_batch = x[batch].to(self.device), y[batch].to(self.device)
            for change in self.augment:
                x_batch, y_batch = change(x_batch, y_batch)
            loss = F.cross_entropy(self.model(x_batch), y_batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def predict(self, data: Data) -> np.ndarray:
        return self._probabilities(self._standard(self._at_its_rate(data)))

    @torch.no_grad()
    def _probabilities(self, inputs: torch.Tensor) -> np.ndarray:
        self.model.eval()
        parts = [self.model(x.to(self.device)).softmax(-1).cpu() for x in inputs.split(256)]
        return torch.cat(parts).double().numpy()


def _linear(shape: tuple, n_classes: int, sfreq: float) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), n_classes))


def _two_layers(shape: tuple, n_classes: int, sfreq: float) -> nn.Module:
    first, last = nn.Linear(int(np.prod(shape)), 256), nn.Linear(256, n_classes)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), first, nn.GELU(), nn.Dropout(0.5), last)


class _OnEncoder(nn.Module):
    """An encoder of `models/token_encoders.py`, trained from scratch, and a linear layer on all that it gives."""

    def __init__(self, kind: type, shape: tuple, n_classes: int, sfreq: float):
        super().__init__()
        self.encoder = kind(*shape).requires_grad_(True)
        with torch.no_grad():
            width = self.encoder.eval()(torch.zeros(1, *shape)).numel()
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).flatten(1))


# one linear layer on the tokens of a trial, standardised: what they tell without a language model
linear_probe = partial(Trained, _linear, "tokens", weight_decay=0.1)
# two layers (256 hidden units, GELU, dropout 0.5) on the same
mlp = partial(Trained, _two_layers, "tokens", weight_decay=0.1)
# EEGNet-8,2 (Lawhern et al., 2018), ours
eegnet = partial(Trained, partial(_OnEncoder, EEGNet), "signal", sfreq=EEGNet.sfreq)
# ShallowFBCSPNet (Schirrmeister et al., 2017), ours, with its moments pooled in fours
shallow = partial(Trained, partial(_OnEncoder, ShallowFBCSPNet), "signal", sfreq=ShallowFBCSPNet.sfreq)


def of_braindecode(name: str) -> Callable[..., Trained]:
    """A model of braindecode, trained from scratch at the rate that it was published for: `--model braindecode:NAME`.

    Raises UserError where the library is not installed, has no such model, or the model does not fit such trials.
    """
    # optional, and slow to import
    from models.braindecode_encoders import model_named, quiet, rate_of

    kind = model_named(name, "--model")

    def net(shape: tuple, n_classes: int, sfreq: float) -> nn.Module:
        n_chans, n_times = shape
        with loading(f"--model braindecode:{name}", "choose another model, electrodes or window"), quiet():
            return kind(n_chans=n_chans, n_outputs=n_classes, n_times=n_times, sfreq=sfreq)

    return partial(Trained, net, "signal", sfreq=rate_of(name))


def atcnet(**settings) -> Trained:
    """ATCNet (Altaheri et al., IEEE Trans. Ind. Inform. 19, 2023), of braindecode."""
    return of_braindecode("ATCNet")(**settings)

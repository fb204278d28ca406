"""Baselines that stand beside every decoder: what a constant, the recording, a classical method or a small net gives.

A baseline has `fit(train, val)` and `predict(data)` → (N, K) probabilities. What it reads is its `reads`: "signal" (N, C, T) in
microvolts, "tokens" (N, n, D), "features" (N, 5 · C), differential entropy, or "trials", which is no signal at all.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt, welch
from torch import nn
from torch.nn import functional as F

from utils.errors import UserError
from utils.progress import progress
from utils.seeds import seed_everything
from utils.signals import resample

LEAST_SECONDS = 0.5  # of a trial, for power by band and filters
BANDS = ((4, 8), (8, 13), (13, 20), (20, 30), (30, 45))  # Hz: theta, alpha (mu), low and high beta, gamma
RHYTHMS = (
    8,
    30,
)  # Hz: what CSP and the tangent space look at, as in Blankertz et al., IEEE Signal Process. Mag. 25, 2008


@dataclass
class Data:
    """Trials as a baseline reads them.

    x : array (N, …) float32. Microvolts (N, C, T) or tokens (N, n, D); None for what reads no signal.
    labels : (N,) int
    recordings : list of (session, run). The kind of recording, whoever it is of.
    sfreq : float. Hz.
    """

    x: np.ndarray | None
    labels: np.ndarray
    recordings: Sequence[tuple]
    sfreq: float

    def __len__(self) -> int:
        return len(self.labels)


def _shares(labels: np.ndarray, n_classes: int) -> np.ndarray:
    return np.bincount(labels, minlength=n_classes) / len(labels)


# ---------------------------------------------------------------- without a signal


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
        labels = defaultdict(list)
        for recording, label in zip(train.recordings, train.labels, strict=True):
            labels[recording].append(label)
        self.of = {recording: _shares(np.array(of), self.n_classes) for recording, of in labels.items()}

    def predict(self, data: Data) -> np.ndarray:
        return np.stack([self.of.get(recording, self.shares) for recording in data.recordings])


# ---------------------------------------------------------------- classical methods


class Classical:
    """Features of each trial, and a classifier of scikit-learn's.

    make : callable. (sfreq) → pipeline with fit(x, labels) and predict_proba(x).
    """

    reads = "signal"

    def __init__(self, n_classes: int, make: Callable):
        self.n_classes, self.make = n_classes, make

    def fit(self, train: Data, val: Data) -> None:
        if train.x.shape[-1] < LEAST_SECONDS * train.sfreq:
            raise UserError(
                f"trials are too short for this baseline: {train.x.shape[-1]} samples, expected {LEAST_SECONDS} s or more"
            )
        self.pipeline = self.make(train.sfreq)
        self.pipeline.fit(np.asarray(train.x, np.float64), train.labels)

    def predict(self, data: Data) -> np.ndarray:
        found = np.zeros((len(data), self.n_classes))
        found[:, self.pipeline.classes_] = self.pipeline.predict_proba(np.asarray(data.x, np.float64))
        return found


def band_power(x: np.ndarray, sfreq: float) -> np.ndarray:
    """(N, C, T) → (N, C · bands) logarithm of each band's power (Welch, windows of a second)."""
    frequencies, density = welch(x, sfreq, nperseg=min(round(sfreq), x.shape[-1]))
    bands = [(frequencies >= low) & (frequencies < high) for low, high in BANDS if low < sfreq / 2]
    return np.concatenate([np.log(density[..., band].mean(-1) + 1e-12) for band in bands], axis=1)


def filtered(x: np.ndarray, sfreq: float) -> np.ndarray:
    """(N, C, T) between 8 and 30 Hz, without a shift in time."""
    return sosfiltfilt(butter(4, RHYTHMS, "bandpass", fs=sfreq, output="sos"), x, axis=-1)


def _bandpower_lda(sfreq: float):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return make_pipeline(FunctionTransformer(band_power, kw_args={"sfreq": sfreq}), lda)


def _csp_lda(sfreq: float):
    import mne
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    mne.set_log_level("ERROR")
    csp = mne.decoding.CSP(n_components=6, reg="oas", log=True)
    return make_pipeline(FunctionTransformer(filtered, kw_args={"sfreq": sfreq}), csp, LinearDiscriminantAnalysis())


def _tangent_space(sfreq: float):
    try:
        from pyriemann.estimation import Covariances
        from pyriemann.tangentspace import TangentSpace
    except ImportError:
        raise UserError("--model tangent_space needs pyriemann: pip install -r requirements-baselines.txt") from None
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    return make_pipeline(
        FunctionTransformer(filtered, kw_args={"sfreq": sfreq}), Covariances("oas"), TangentSpace("riemann"),
        StandardScaler(), LogisticRegression(max_iter=2000, C=0.1),
    )  # fmt: skip


def bandpower_lda(n_classes: int, **_) -> Classical:
    """Logarithm of band power and linear discriminant analysis with shrinkage."""
    return Classical(n_classes, _bandpower_lda)


def csp_lda(n_classes: int, **_) -> Classical:
    """Common spatial patterns (6 components, 8–30 Hz) and linear discriminant analysis."""
    return Classical(n_classes, _csp_lda)


def tangent_space(n_classes: int, **_) -> Classical:
    """Covariances (8–30 Hz) in the tangent space of their Riemannian mean, and logistic regression (Barachant et al., 2013)."""
    return Classical(n_classes, _tangent_space)


# ---------------------------------------------------------------- trained by gradient


class Trained:
    """A network trained with AdamW; of its epochs the one with the best validation accuracy, the earlier of equals.

    net : callable. (shape of one input, n_classes, sfreq) → nn.Module, input → logits (B, K).
    sfreq : float, optional. Hz that the network wants its signal at.
    epochs, batch_size, lr, weight_decay : settings of the training.
    """

    def __init__(
        self, n_classes: int, net: Callable, reads: str, seed: int, epochs: int, device: torch.device, lr: float = 1e-3,
        batch_size: int = 64, weight_decay: float = 0.01, sfreq: float | None = None,
    ):  # fmt: skip
        self.n_classes, self.net, self.reads, self.seed, self.epochs, self.device = (
            n_classes,
            net,
            reads,
            seed,
            epochs,
            device,
        )
        self.lr, self.batch_size, self.weight_decay, self.sfreq = lr, batch_size, weight_decay, sfreq
        self.history: list[dict] = []

    def _at_its_rate(self, data: Data) -> np.ndarray:
        return data.x if self.sfreq is None else resample(data.x, data.sfreq, self.sfreq)

    def _standard(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray((x - self.mean) / self.sd, np.float32))

    def fit(self, train: Data, val: Data) -> None:
        seed_everything(self.seed)
        axes = tuple(k for k in range(train.x.ndim) if k != 1) if self.reads == "signal" else 0
        x = self._at_its_rate(train)
        self.mean, self.sd = (
            x.mean(axis=axes, keepdims=True),
            x.std(axis=axes, keepdims=True) + 1e-6,
        )  # of training trials
        x, y, x_val = self._standard(x), torch.from_numpy(train.labels), self._standard(self._at_its_rate(val))
        self.model = self.net(tuple(x.shape[1:]), self.n_classes, self.sfreq or train.sfreq).to(self.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), self.lr, weight_decay=self.weight_decay)
        highest, kept = -1.0, None
        for epoch in progress(range(1, self.epochs + 1), desc="training", unit="epoch"):
            seed_everything(self.seed, epoch)
            self.model.train()
            losses = []
            for batch in torch.randperm(len(x)).split(self.batch_size):
                if len(batch) < 2:  # batch normalisation needs two
                    continue
                loss = F.cross_entropy(self.model(x[batch].to(self.device)), y[batch].to(self.device))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
            accuracy = (
                float((self._probabilities(x_val).argmax(axis=1) == val.labels).mean()) if len(val) else float(epoch)
            )
            self.history.append({"epoch": epoch, "train_loss": float(np.mean(losses)), "accuracy": accuracy})
            if accuracy > highest:
                highest, self.best, kept = accuracy, epoch, copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(kept)

    def predict(self, data: Data) -> np.ndarray:
        return self._probabilities(self._standard(self._at_its_rate(data)))

    @torch.no_grad()
    def _probabilities(self, inputs: torch.Tensor) -> np.ndarray:
        self.model.eval()
        parts = [self.model(x.to(self.device)).softmax(-1).cpu() for x in inputs.split(256)]
        return torch.cat(parts).double().numpy()


def linear_probe(n_classes: int, seed: int, epochs: int, device: torch.device, **_) -> Trained:
    """One linear layer on the tokens of a trial, standardised: what they tell without a language model."""
    return Trained(n_classes, lambda shape, k, _: nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), k)), "tokens", seed,
                   epochs, device, weight_decay=0.1)  # fmt: skip


def mlp(n_classes: int, seed: int, epochs: int, device: torch.device, **_) -> Trained:
    """Two layers (256 hidden units, GELU, dropout 0.5) on the tokens of a trial, standardised."""

    def net(shape: tuple, k: int, _: float) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(int(np.prod(shape)), 256), nn.GELU(), nn.Dropout(0.5),
                             nn.Linear(256, k))  # fmt: skip

    return Trained(n_classes, net, "tokens", seed, epochs, device, weight_decay=0.1)


class _Classifier(nn.Module):
    """One of `models/token_encoders.py`, trained from scratch, and a linear layer on all that it gives."""

    def __init__(self, encoder: nn.Module, shape: tuple, n_classes: int):
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        with torch.no_grad():
            width = encoder.eval()(torch.zeros(1, *shape)).numel()
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).flatten(1))


def _from_scratch(kind: str, n_classes: int, seed: int, epochs: int, device: torch.device) -> Trained:
    from models import token_encoders

    cls = getattr(token_encoders, kind)
    return Trained(
        n_classes,
        lambda shape, k, _: _Classifier(cls(*shape), shape, k),
        "signal",
        seed,
        epochs,
        device,
        sfreq=cls.sfreq,
    )


def eegnet(n_classes: int, seed: int, epochs: int, device: torch.device, **_) -> Trained:
    """EEGNet-8,2 (Lawhern et al., 2018), ours."""
    return _from_scratch("EEGNet", n_classes, seed, epochs, device)


def shallow(n_classes: int, seed: int, epochs: int, device: torch.device, **_) -> Trained:
    """ShallowFBCSPNet (Schirrmeister et al., 2017), ours, with its moments pooled in fours."""
    return _from_scratch("ShallowFBCSPNet", n_classes, seed, epochs, device)


def atcnet(n_classes: int, seed: int, epochs: int, device: torch.device, **_) -> Trained:
    """ATCNet (Altaheri et al., IEEE Trans. Ind. Inform. 19, 2023), of braindecode."""
    try:
        from braindecode.models import ATCNet
    except ImportError as error:
        raise UserError(
            f"--model atcnet needs braindecode ({error}): pip install -r requirements-baselines.txt"
        ) from None

    def net(shape: tuple, k: int, sfreq: float) -> nn.Module:
        return ATCNet(
            n_chans=shape[0], n_outputs=k, n_times=shape[1], sfreq=sfreq, input_window_seconds=shape[1] / sfreq
        )

    return Trained(n_classes, net, "signal", seed, epochs, device, sfreq=250.0)


# ---------------------------------------------------------------- EEG-ImageNet's, on differential entropy


class OnFeatures:
    """A classifier of scikit-learn's on standardised features; its scores become probabilities by softmax where it has none."""

    reads = "features"

    def __init__(self, n_classes: int, classifier):
        self.n_classes, self.classifier = n_classes, classifier

    def fit(self, train: Data, val: Data) -> None:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(set(train.labels.tolist())) < 2:
            raise UserError("this baseline needs training trials of two classes or more")
        self.pipeline = make_pipeline(StandardScaler(), self.classifier).fit(train.x, train.labels)

    def predict(self, data: Data) -> np.ndarray:
        found = np.zeros((len(data), self.n_classes))
        if not len(data):
            return found
        if hasattr(self.pipeline, "predict_proba"):
            p = self.pipeline.predict_proba(data.x)
        else:
            scores = self.pipeline.decision_function(data.x)
            scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores  # two classes have one score
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        found[:, self.pipeline.classes_] = p
        return found


def ridge(n_classes: int, **_) -> OnFeatures:
    from sklearn.linear_model import RidgeClassifier

    return OnFeatures(n_classes, RidgeClassifier())


def knn(n_classes: int, **_) -> OnFeatures:
    from sklearn.neighbors import KNeighborsClassifier

    return OnFeatures(n_classes, KNeighborsClassifier(5))


def forest(n_classes: int, seed: int = 0, **_) -> OnFeatures:
    from sklearn.ensemble import RandomForestClassifier

    return OnFeatures(n_classes, RandomForestClassifier(200, random_state=seed))


def svm(n_classes: int, seed: int = 0, **_) -> OnFeatures:
    from sklearn.svm import LinearSVC

    return OnFeatures(n_classes, LinearSVC(random_state=seed))

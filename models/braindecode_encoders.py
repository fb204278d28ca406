"""Any model of the library braindecode as an encoder that gives tokens: `--encoder braindecode:NAME`. Optional.

    braindecode:EEGConformer                        trained from scratch
    braindecode:CBraMod                             with its published weights (`PUBLISHED`), frozen like csbrain
    braindecode:CBraMod@OWNER/NAME, …@FOLDER        with other weights: model.safetensors of that class

Features are what the model's last layer, `final_layer`, is given; of a model whose call has `return_features`, these.
They become tokens by their shape and by the width that the last layer reads:
    (B, D)                                          one token
    (B, n, D)                                       n tokens
    (B, C, P, D), C the electrodes                  C · P tokens, which --token_pooling pools by electrodes
    (B, D, P), (B, D, P, 1), (B, D, 1, P)           P tokens, behind a convolution
Weights are read as tensors: no code and no class that a repository's config.json names is run or imported.
"""

import contextlib
import csv
import functools
import inspect
import json
import warnings
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from models.eeg_encoders import resampled
from models.loading import check_config
from utils.checkpoints import CONFIG, weights_file
from utils.errors import UserError, loading
from utils.signals import resample

LIBRARY = "braindecode.models"
OUTPUTS = 7  # of the last layer, which is taken away
MAX_WIDTH = 10_000  # of a number in a config.json beside weights
USUAL_RATE, USUAL_UNIT = 250.0, 10.0  # Hz and microvolts, of a model of which nothing else is known


class Weights(NamedTuple):
    """Published weights and the unit that they were trained on, in microvolts; None: each electrode's 95th percentile.

    The address is the one in the model's own documentation, the unit that of its authors' code.
    """

    address: str
    unit: float | None


PUBLISHED = {
    "BIOT": Weights("braindecode/biot-pretrained-six-datasets-18chs", None),
    "CBraMod": Weights("braindecode/cbramod-pretrained", 100.0),
    "CodeBrain": Weights("braindecode/codebrain-pretrained", 100.0),
    "Labram": Weights("braindecode/labram-pretrained", 100.0),
}


def library(flag: str = "--encoder") -> dict[str, type]:
    """The models of braindecode by name; UserError where it is not installed."""
    try:
        with quiet():
            import braindecode.models as models
            from braindecode.models.base import EEGModuleMixin
    except ImportError as error:
        what = f"{flag} braindecode:… needs braindecode ({error})"
        raise UserError(f"{what}: pip install -r requirements-baselines.txt") from None
    found = {name: getattr(models, name) for name in dir(models) if name != EEGModuleMixin.__name__}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, EEGModuleMixin)}


def model_named(name: str, flag: str = "--encoder") -> type:
    """A model's class; UserError where the library has none of that name."""
    known = library(flag)
    if name not in known:
        raise UserError(f"{flag} braindecode:{name}: there is no such model; there are {', '.join(sorted(known))}")
    return known[name]


@functools.cache
def encoder_named(text: str) -> type:
    """The encoder class of "NAME" or "NAME@WEIGHTS"; UserError where the library has no such model."""
    name, _, place = text.partition("@")
    model_named(name)
    units = {known.lower(): weights.unit for known, weights in PUBLISHED.items()}
    unit = units.get(name.lower().removeprefix("interpolated"), USUAL_UNIT)
    weights = place or (PUBLISHED[name].address if name in PUBLISHED else "")
    fields = {"name": name, "weights": weights, "unit": unit, "pretrained": bool(weights)}
    fields |= {"lr": 1e-4} if weights else {}
    return type(f"braindecode:{name}", (BraindecodeEncoder,), fields)


@functools.cache
def rate_of(name: str) -> float:
    """The rate in Hz that a model was published for, from the library's own table."""
    with contextlib.suppress(OSError):
        table = (resources.files(LIBRARY) / "summary.csv").read_text(encoding="utf-8-sig")
        for row in csv.DictReader(table.splitlines()):
            if row["Model"] == name and row["Sampling Frequency (Hz)"].strip().isdigit():
                return float(row["Sampling Frequency (Hz)"])
    return USUAL_RATE


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what these libraries say of their own work."""
    from mne.utils import use_log_level

    with warnings.catch_warnings(), use_log_level("ERROR"):
        warnings.simplefilter("ignore")
        yield


def channel_info(electrodes: Sequence[str], sfreq: float) -> list[dict]:
    """MNE's description of electrodes, with standard positions where their names have some."""
    import mne

    info = mne.create_info(list(electrodes), sfreq, "eeg", verbose="error")
    montage = mne.channels.make_standard_montage("standard_1005")
    info.set_montage(montage, match_case=False, on_missing="ignore", verbose="error")
    return info["chs"]


class Given(nn.Module):
    """Stands in the last layer's place, keeps what it is given, and has no weights."""

    features: torch.Tensor | None = None

    def forward(self, features: torch.Tensor, *_, **__) -> torch.Tensor:
        self.features = features
        return features


class BraindecodeEncoder(nn.Module):
    """See `models/token_encoders.py` for what an encoder has; `encoder_named` makes a class of each model.

    electrodes : sequence of str. n_times : int. Samples a trial at `sfreq` Hz, the model's own rate.
    settings : dict. Parameters of the model's constructor, numbers only.
    Raises UserError where the model cannot be made for such trials, or its features cannot be told.
    """

    # of the library; where weights are, "" for none; microvolts, None: by electrode
    name, weights, unit = "", "", USUAL_UNIT
    pretrained, lr = False, 1e-3
    gives, takes_people, needs_microvolts = ("tokens",), False, True
    heads = ("final_layer.",)  # names of weights that are left out

    @classmethod
    def build(
        cls, electrodes: Sequence[str], n_times: int, sfreq: float, random: bool = False, **_
    ) -> "BraindecodeEncoder":
        """random : bool. Whether no weights will be loaded, so that the model is as large as the library makes it."""
        rate = rate_of(cls.name)
        settings = numbers_of(weights_file(cls.weights)) if cls.weights and not random else {}
        return cls(electrodes, resampled(n_times, sfreq, rate), rate, settings)

    def __init__(self, electrodes: Sequence[str], n_times: int, sfreq: float, settings: dict):
        super().__init__()
        self.sfreq, n_chans, kind = sfreq, len(electrodes), model_named(self.name)
        allowed = inspect.signature(kind.__init__).parameters
        trials = {"n_outputs": OUTPUTS, "n_chans": n_chans, "n_times": n_times, "sfreq": sfreq}
        settings = {k: v for k, v in settings.items() if k in allowed} | trials
        hint = "choose another model, electrodes or window"
        with loading(f"--encoder braindecode:{self.name}", hint), quiet():
            self.net = kind(**settings, chs_info=channel_info(electrodes, sfreq))
            call = inspect.signature(self.net.forward).parameters
            self.how = {"return_features": True} if "return_features" in call else {}
            self.how |= {"ch_names": list(electrodes)} if "ch_names" in call else {}
            self.reads, self.has_conv = (0, False) if "return_features" in call else last_layer(self.net.final_layer)
            heads = self.net.final_layer  # ATCNet has one a window
            several = isinstance(heads, nn.ModuleList)
            self.net.final_layer = nn.ModuleList(Given() for _ in heads) if several else Given()
            self.electrode_order = None
            self.eval()
            features = self._features(torch.zeros(2, n_chans, n_times))
            if not self.reads and "return_features" not in call and OUTPUTS in features.shape[1:]:
                raise ValueError("its last layer has no weights: what stands before it are its outputs")
            if features.ndim == 4 and features.shape[1] == n_chans and not self.has_conv:
                self.electrode_order = list(range(n_chans))
            tokens = self._tokens(features)  # (2, C or 1, P, width)
            self.width = tokens.shape[-1]
            tokens.square().sum().backward()
            if not tokens.shape[2] or not any(p.grad is not None for p in self.parameters()):
                raise ValueError(f"its last layer is given {tuple(features.shape)}, of which no tokens can be made")
        self.used = {name for name, p in self.named_parameters() if p.grad is not None}
        self.zero_grad(set_to_none=True)

    def prepare(self, x: np.ndarray, sfreq: float) -> np.ndarray:
        """(C, n_times) microvolts → (C, T) at the model's rate, in its unit."""
        x = resample(x, sfreq, self.sfreq)
        unit = np.quantile(np.abs(x), 0.95, axis=-1, keepdims=True) + 1e-8 if self.unit is None else self.unit
        return (x / unit).astype(np.float32)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Those that features depend on: not what stands beside the last layer."""
        return [p for name, p in self.named_parameters() if name in self.used]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T) → (B, C or 1, P, width)."""
        return self._tokens(self._features(x))

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        out, given = self.net(x, **self.how), [m for m in self.net.final_layer.modules() if isinstance(m, Given)]
        features = out["features"] if isinstance(out, dict) else given[0].features
        if len(given) > 1:
            features = torch.stack([head.features for head in given], dim=1)  # (B, windows, D)
        for head in given:
            head.features = None  # a batch's memory is not held until the next one
        if not isinstance(features, torch.Tensor) or not 2 <= features.ndim <= 4:
            raise ValueError(f"its last layer is given {type(features).__name__}, expected one tensor (B, …)")
        return features

    def _tokens(self, h: torch.Tensor) -> torch.Tensor:
        if h.ndim == 2:  # (B, D)
            return h[:, None, None]
        if self.electrode_order is not None:  # (B, C, P, D)
            return h
        over_axis_1 = h.shape[1] == self.reads != h.shape[-1]  # where a linear layer does
        behind_conv = self.reads and (self.has_conv or over_axis_1 or (h.ndim == 4 and 1 in h.shape[2:]))
        if behind_conv:  # (B, D, …)
            return h.flatten(2).transpose(1, 2)[:, None]
        return h.flatten(1, -2)[:, None]  # (B, …, D)


def last_layer(layer: nn.Module) -> tuple[int, bool]:
    """How many features a last layer reads (0: it has no weights), and whether it is a convolution."""
    for module in layer.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            is_conv = not isinstance(module, nn.Linear)
            return module.in_channels if is_conv else module.in_features, is_conv
    return 0, False


def numbers_of(weights: Path) -> dict:
    """The numbers in the config.json beside a file of weights, such as a model's depth; names of classes are left."""
    config = weights.with_name(CONFIG)
    if not config.is_file():
        return {}
    with loading(str(config), "name other weights"):
        check_config(config, MAX_WIDTH)
        content = json.loads(config.read_text(encoding="utf-8"))
        of_trials = ("n_outputs", "n_chans", "n_times", "sfreq", "input_window_seconds")
        return {k: v for k, v in content.items() if isinstance(v, int | float) and k not in of_trials}

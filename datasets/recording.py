"""What a dataset's file yields: one uninterrupted run of a recording with its trials."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Recording:
    """One uninterrupted run.

    signal : (n_chans, n_times) float64 array. EEG electrodes in montage order, microvolts.
    sfreq : float. Hz.
    onsets : (n_trials,) int array. 0-based sample of each trial's reference point.
    labels : (n_trials,) int array. 0-based class.
    run : int. Counts within the session from 1.
    number : int. Position in its file, from 1.
    numbers : (n_trials,) int array, optional. Number of each trial within its run; 1, 2, … where it is not given.
    images : list of str. What was shown in each trial, where it differs within a class; else empty.
    artifacts : (n_trials,) bool array, optional. Marked by the expert.
    left_out : Counter. Trials that the dataset's file leaves out: (cause, label or text) → how many.
    kind : str. What the closing table counts it as.
    notes : dict. Facts for the store's record of sources.
    """

    signal: np.ndarray
    sfreq: float
    onsets: np.ndarray
    labels: np.ndarray
    subject: str = ""
    session: str = ""
    run: int = 1
    number: int = 1
    numbers: np.ndarray | None = None
    images: list[str] = field(default_factory=list)
    artifacts: np.ndarray | None = None
    left_out: Counter = field(default_factory=Counter)
    kind: str = "task runs"
    notes: dict = field(default_factory=dict)

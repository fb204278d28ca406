"""Visual-Imagery-like recordings with a simulated effect, in the containers, and with the faults, of the real ones.

Every brain region has an 8–13 Hz and an 18–24 Hz rhythm; while a picture is imagined, the class's rhythm grows in the
class's region. People differ in gain, noise, rhythms and electrode offsets.
"""

from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np
import scipy.fft
from scipy.signal import butter, sosfiltfilt

from datasets.visual_imagery_llm_dataset import CODES, MONTAGE, N_SESSIONS, SUBJECTS, TASKS
from utils.paths import written_whole

SFREQ = 1000  # Hz
BDF_MICROVOLTS = 187500.0  # physical limits of Neuracle's header, for 24-bit samples
STRAY = ("S13", "02", "AVI", 5)  # the real data have a code 5 in this session, which no task knows
REGIONS = sorted(MONTAGE.topology)
EFFECT = {label: (label % 5, label // 5) for label in range(10)}  # class → (region, rhythm) that grows


@dataclass(frozen=True)
class VIDemoSize:
    """How much to write, and how plain. The real sessions have 40 trials a class, and a trial lasts over 11 s.

    effect, spread : float. As in `demo.bcic_like.DemoSize`.
    """

    trials_per_class: int = 3
    trial_seconds: float = 5.5  # 4.5 s of imagery and a pause
    effect: float = 0.45
    spread: float = 0.3
    growth: float = 2.0  # of the rhythm's amplitude, relative to rest, at the strongest effect
    only: tuple[str, ...] = SUBJECTS


def write_vi_like(raw_dir: Path, size: VIDemoSize, seed: int) -> tuple[int, int]:
    """Write a BIDS-like tree; recordings that are there are left alone.

    Of three people one has FIF (annotations and `events.tsv`), one BDF with 16-bit digital limits (`events.tsv` and
    Status, resting at 0), one the same without physical dimension and without `events.tsv` (Status resting at 131071).

    Returns (int, int): Recordings, and how many of them were written now.
    """
    n_all = n_new = 0
    for subject in size.only:
        number = int(subject[1:])
        traits = _traits(np.random.default_rng((seed, number)), size.spread)
        for session in range(1, N_SESSIONS[subject] + 1):
            for task in TASKS:
                stem = f"sub-{number:02d}_ses-{session:02d}_task-{task}"
                suffix = ".fif" if number % 3 == 2 else ".bdf"
                path = raw_dir / f"sub-{number:02d}/ses-{session:02d}/eeg/{stem}_eeg{suffix}"
                n_all += 1
                if path.exists():
                    continue
                n_new += 1
                rng = np.random.default_rng((seed, number, session, list(TASKS).index(task)))
                signal, events = _recording(rng, traits, size, task)
                if STRAY[:3] == (subject, f"{session:02d}", task):
                    events.append((events[-1][0] + 4800, STRAY[3]))
                if number % 3 != 1:
                    write_tsv(path.with_name(f"{stem}_events.tsv"), events)
                if suffix == ".fif":
                    write_fif(path, signal, events)
                else:
                    blank, rest = (True, 131071) if number % 3 == 1 else (False, 0)
                    write_bdf(path, signal, events, rest=rest, dimension="" if blank else "uV")
    return n_all, n_new


# ---------------------------------------------------------------- the signal


def _traits(person: np.random.Generator, spread: float) -> dict:
    """What makes a person."""
    n_chans = len(MONTAGE.electrodes)
    traits = {
        "gain": person.uniform(0.85, 1.2),
        "noise": person.uniform(6.0, 9.0),  # microvolts
        "rhythms": (person.uniform(9.5, 11.5), person.uniform(19.5, 22.5)),  # Hz
        "amplitude": person.uniform(0.9, 1.1, (5, 2)) * (5.0, 4.0),  # microvolts at rest, by region and rhythm
        "offset": person.normal(0, 20, n_chans),  # microvolts
        "weight": person.uniform(0.8, 1.2, n_chans),  # how an electrode sees its region
        "strength": person.uniform(0.9, 1.1),
    }
    return traits | {"strength": traits["strength"] * (1 + spread * person.uniform(-1, 1))}


def _recording(rng: np.random.Generator, traits: dict, size: VIDemoSize, task: str) -> tuple[np.ndarray, list]:
    """(32, n_times) microvolts and [(sample, code), …] of one task."""
    codes = rng.permutation(np.repeat(CODES[task], size.trials_per_class))
    onsets = (1000 + np.arange(len(codes)) * size.trial_seconds * SFREQ).astype(int)
    n_times = -(-int(onsets[-1] + 6 * SFREQ) // SFREQ) * SFREQ  # whole records of a second

    sources = np.empty((5, 2, n_times))
    for k, centre in enumerate(traits["rhythms"]):
        band = butter(3, (centre - 1.5, centre + 1.5), "bandpass", fs=SFREQ, output="sos")
        source = sosfiltfilt(band, rng.standard_normal((5, n_times)), axis=-1)
        sources[:, k] = source / source.std(axis=-1, keepdims=True) * traits["amplitude"][:, k, None]
    ramp = np.hanning(400)
    for onset, code in zip(onsets, codes, strict=True):
        region, rhythm = EFFECT[TASKS[task] + int(code) - 1]
        envelope = np.ones(4600)
        envelope[:200], envelope[-200:] = ramp[:200], ramp[200:]
        growth = 1 + size.growth * size.effect * traits["strength"] * rng.uniform(0.85, 1.15) * envelope
        sources[region, rhythm, onset : onset + 4600] *= growth

    region_of = np.array([REGIONS.index(code) for code in MONTAGE.brain_regions])
    eeg = sources.sum(axis=1)[region_of] * traits["weight"][:, None]
    eeg += pink_noise(rng, len(MONTAGE.electrodes), n_times) * traits["noise"] + pink_noise(rng, 1, n_times) * 4
    eeg += 2 * np.sin(2 * np.pi * 50 * np.arange(n_times) / SFREQ)  # mains
    signal = traits["gain"] * eeg + traits["offset"][:, None]
    return signal, [(int(onset), int(code)) for onset, code in zip(onsets, codes, strict=True)]


def pink_noise(rng: np.random.Generator, n_chans: int, n_times: int, sfreq: float = SFREQ) -> np.ndarray:
    """1/f noise of unit standard deviation."""
    n = scipy.fft.next_fast_len(n_times, real=True)
    freqs = scipy.fft.rfftfreq(n, 1 / sfreq)
    spectrum = rng.standard_normal((n_chans, len(freqs))) + 1j * rng.standard_normal((n_chans, len(freqs)))
    signal = scipy.fft.irfft(spectrum / np.sqrt(np.maximum(freqs, 0.5)), n, axis=-1)[:, :n_times]
    return signal / signal.std(axis=1, keepdims=True)


# ---------------------------------------------------------------- the files


def write_tsv(path: Path, events: list[tuple[int, int]]) -> None:
    """A BIDS `events.tsv`."""
    rows = ["onset\tduration\tlatency\tvalue", *(f"{k / SFREQ:.3f}\t4.000\t{k}\t{code}" for k, code in events)]
    with written_whole(path) as unfinished:
        unfinished.write_text("\n".join(rows) + "\n")


def write_fif(path: Path, signal: np.ndarray, events: list[tuple[int, int]]) -> None:
    """A FIF file in volts, with annotations."""
    raw = mne.io.RawArray(signal * 1e-6, mne.create_info(list(MONTAGE.electrodes), SFREQ, "eeg"), verbose="ERROR")
    raw.set_annotations(mne.Annotations([k / SFREQ for k, _ in events], 0.001, [str(code) for _, code in events]))
    with written_whole(path) as unfinished:
        unfinished.parent.mkdir(exist_ok=True)
        raw.save(unfinished, fmt="single", verbose="ERROR")


def write_bdf(
    path: Path,
    signal: np.ndarray,
    events: list[tuple[int, int]],
    rest: int = 0,
    dimension: str = "uV",
    digital: tuple[int, int] = (-32768, 32767),
    labels: tuple[str, ...] = MONTAGE.electrodes,
) -> None:
    """A BDF file with 24-bit samples, by default under the 16-bit digital limits that Neuracle's headers claim.

    path : Path
    signal : (n_chans, n_times) array. Microvolts; whole seconds.
    events : list of (sample, code). Pulses of one sample in the `Status` channel.
    rest : int. Status between the events.
    dimension : str. Physical dimension of the electrodes in the header.
    digital : (int, int). Digital limits of the electrodes in the header; the samples are 24-bit whatever it says.
    labels : tuple of str
    """
    status = np.full(signal.shape[1], rest)
    for sample, code in events:
        status[sample] = code
    counts = np.round(signal / (BDF_MICROVOLTS / (2**23 - 1))).astype("<i4")
    counts = np.vstack([counts, status.astype("<i4")])  # (n_chans + 1, n_times)
    n, n_records = len(counts), counts.shape[1] // SFREQ
    own, status_limits = (-BDF_MICROVOLTS, BDF_MICROVOLTS, *digital), (-(2**23), 2**23 - 1) * 2
    limits = [own] * (n - 1) + [status_limits]  # physical minimum and maximum, digital minimum and maximum

    def column(values, width):
        return "".join(f"{value:<{width}}" for value in values)

    fixed = f"{'':80}{'':80}{'01.01.26':8}{'00.00.00':8}{256 * (n + 1):<8}{'24BIT':44}{n_records:<8}{1:<8}{n:<4}"
    header = "".join([
        column([*labels, "Status"], 16), column([""] * n, 80), column([*[dimension] * (n - 1), "Boolean"], 8),
        *(column([f"{row[k]:g}" if abs(row[k]) < 1e6 else f"{row[k]:.0f}" for row in limits], 8) for k in range(4)),
        column([""] * n, 80), column([SFREQ] * n, 8), column([""] * n, 32),
    ])  # fmt: skip
    data = counts[:, : n_records * SFREQ].reshape(n, n_records, SFREQ).transpose(1, 0, 2)  # record by record
    with written_whole(path) as unfinished, open(unfinished, "wb") as file:
        file.write(b"\xffBIOSEMI" + fixed.encode() + header.encode())
        file.write(np.ascontiguousarray(data).view(np.uint8).reshape(-1, 4)[:, :3].tobytes())

"""THINGS-EEG2: 16,740 photos of 1,854 things, seen by 10 people in 4 sessions; 63 electrodes.

Gifford et al., NeuroImage 264:119754, 2022; OSF 3jk45. A photo is there for 100 ms and a new one comes every 200 ms, so
one second after an onset also holds the responses to the next four photos. Layouts of a person's folder `sub-XX`:
raw   ses-0Y/raw_eeg_{training,test}.npy   the authors' recordings: a pickled dict, volts at 1000 Hz, codes in `stim`
npy   preprocessed_eeg_{training,test}.npy NICE's, ATM's pickles (63 electrodes), the authors' (17): cut and whitened;
      or train.npy, test.npy               NeuroBridge's, an axis of concepts before that of their images
pt    *train*.pt, *test*.pt                UBP's
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mode

import numpy as np

from datasets.description import DatasetDescription
from datasets.electrodes import montage_of
from datasets.prepare import check_amplitude
from datasets.preprocessing import Preprocessing
from datasets.recording import DTYPE, Piece, Prepared, Trial, stamp
from readers.pickles import field, number, numbers, read_pickled, samples, texts
from readers.stored_array import Array
from utils.archives import check_packed
from utils.errors import UserError, loading
from utils.paths import image_path, is_file_name
from utils.workers import in_order

ELECTRODES = tuple(
    "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 "
    "FT10 T7 C5 C3 C1 Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz "
    "P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2".split()
)
POSTERIOR = tuple("P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2".split())  # the authors' 17, and UBP's
SUBJECTS = tuple(f"sub-{number:02d}" for number in range(1, 11))
SESSIONS = ("1", "2", "3", "4")
PARTS = {"training": 1, "test": 2}  # part of the experiment → run of a trial
KEPT = {"training": 2, "test": 20}  # repetitions of an image in a session; what is beyond is left out
TARGET = 99999  # the code of a catch trial
SFREQ, MAX_SFREQ = 250.0, 100_000.0  # Hz, after preparation; of a recorder
EPOCH = (-0.2, 1.0)  # seconds around the onset: what is resampled and whitened; its start is the baseline
HELD_OUT = 100  # training concepts that validate
EVENTS, ROWS = 256, 32  # of a piece: onsets of a recording; images of an array that is cut already
IMAGES = (".jpg", ".jpeg", ".png")
RAW_NAMES = {"training": ("raw_eeg_training.npy", "raw_eeg_train.npy"), "test": ("raw_eeg_test.npy",)}
CUT_NAMES = {
    "training": ("preprocessed_eeg_training.npy", "train.npy"),
    "test": ("preprocessed_eeg_test.npy", "test.npy"),
}
CUT_KEYS = ("preprocessed_eeg_data", "data", "eeg")  # of the arrays that others have cut

# ---------------------------------------------------------------- images


def image_list(raw_dir: Path, images_dir: Path | None) -> dict[str, list[str]]:
    """The images of both parts in the order of their codes, as paths "training_images/00001_aardvark/aardvark_01b.jpg".

    From image_metadata.npy in `raw_dir` or `images_dir`; else from the folders themselves, in alphabetical order.

    Raises UserError if neither is there, or a folder has another number of images than the others or than the metadata
        say.
    """
    files = [folder / "image_metadata.npy" for folder in (raw_dir, images_dir) if folder is not None]
    metadata = next((file for file in files if file.is_file()), None)
    listed = _by_metadata(metadata) if metadata else None
    if images_dir is not None and images_dir.is_dir():
        stored = _by_folders(images_dir, listed or {})
        listed = listed or stored
        if lacking := sorted(set(sum(listed.values(), [])) - set(sum(stored.values(), []))):
            raise UserError(f"{images_dir / lacking[0]} is missing ({len(lacking)} images are); fetch it again")
    if listed is None:
        hint = "one of them says which image a code means; osf.io/jum2f has both"
        raise UserError(f"no image_metadata.npy in {raw_dir}, and no images in {images_dir}: {hint}")
    for part in PARTS:
        if not listed[part]:
            inside = sorted(p.parent.name for p in images_dir.glob("*/*_images") if p.is_dir()) if images_dir else []
            hint = f"; name {images_dir / inside[0]}" if inside and not metadata else ""
            raise UserError(f"{metadata or images_dir} lists no {part} images{hint}")
    return listed


def _by_metadata(path: Path) -> dict[str, list[str]]:
    wanted = {f"{short}_img_{what}" for short in ("train", "test") for what in ("concepts", "files")}
    content, listed = _read_dict(path, "image metadata", wanted), {}
    for part, short in (("training", "train"), ("test", "test")):
        folders, files = (field(path, content, f"{short}_img_{what}", texts) for what in ("concepts", "files"))
        if len(folders) != len(files) or not all(is_file_name(name) for name in (*folders, *files)):
            raise UserError(f"{path}: its {part} concepts and files are no list of names, one an image")
        listed[part] = [f"{part}_images/{folder}/{file}" for folder, file in zip(folders, files, strict=True)]
    return listed


def _read_dict(path: Path, kind: str, wanted: set[str]) -> dict:
    content = read_pickled(path)
    if not isinstance(content, dict) or not wanted <= set(content):
        raise UserError(f"{path} is no {kind}: expected a dict with {', '.join(sorted(wanted))}")
    return content


def _by_folders(images_dir: Path, listed: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Images that are there, by part. `listed`: by the metadata, which tell how many a folder has."""
    stored = {}
    for part in PARTS:
        root = image_path(images_dir, f"{part}_images")
        folders = sorted(p for p in root.glob("*") if p.is_dir() and p.name[0] != ".")
        names = {  # macOS leaves "._aardvark_01b.jpg" beside a photo
            f: sorted(p.name for p in f.iterdir() if p.suffix.lower() in IMAGES and p.name[0] != ".") for f in folders
        }
        stored[part] = [f"{part}_images/{folder.name}/{name}" for folder in folders for name in names[folder]]
        per_folder = Counter(image.split("/")[1] for image in listed.get(part) or stored[part])
        usual = 1 if part == "test" else mode(per_folder.values() or [0])
        for folder in folders:
            if (n := len(names[folder])) != usual:
                some = ", ".join(names[folder][:3]) or "none"
                raise UserError(f"{folder} has {n} images; expected {usual}, as codes count them: {some}")
    return stored


def concept_of(image: str) -> str:
    """Give the name, "aardvark", of "training_images/00001_aardvark/aardvark_01b.jpg"."""
    return re.sub(r"^\d+_", "", image.split("/")[1])


def concepts(images: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names by label: of training, then of test. A concept that is in both has one label: a leak that is found out."""
    return tuple(dict.fromkeys(concept_of(image) for part in PARTS for image in images[part]))


# ---------------------------------------------------------------- what is there


def layout_of(folder: Path) -> str | None:
    """Which of the three layouts a person's folder has."""
    if any(folder.glob("ses-*/raw_eeg_*.npy")):
        return "raw"
    if any((folder / name).is_file() for name in CUT_NAMES["training"]):
        return "npy"
    return "pt" if any(path.name[0] != "." for path in folder.glob("*.pt")) else None


def people_in(raw_dir: Path) -> list[str]:
    """The people that are there in any layout, the published ten or not: "sub-01", "sub-11"."""
    return sorted(p.name for p in raw_dir.glob("sub-*") if re.fullmatch(r"sub-\d+", p.name) and layout_of(p))


def pieces(raw_dir: Path, subjects: Sequence[str], sessions: Sequence[str], layout: str | None) -> list[Piece]:
    """The raw files of some people, in pieces; people, then sessions, then training before test.

    layout : str or None. None: what is there, raw before npy before pt.
    Raises UserError if a person has none of the layouts, or a session or a part is missing.
    """
    cut = []
    for subject in subjects:
        folder = raw_dir / subject
        kind = layout or layout_of(folder)
        if kind is None:
            names = "ses-01/raw_eeg_training.npy nor preprocessed_eeg_training.npy nor train.npy nor train.pt"
            hint = "docs/datasets.md says where they come from; --subjects names the people that are there"
            raise UserError(f"{folder} has neither {names}; {hint}")
        if kind == "raw":
            for session in sessions:
                training, test = (_file(folder / f"ses-{int(session):02d}", "raw", part) for part in PARTS)
                for path, beside in ((training, ()), (test, (training,))):  # a session is whitened by its training part
                    cut += Piece.all_of(path, len(_events(path, stamp(path))[0]), EVENTS, beside)
        else:
            for part in PARTS:
                path = _file(folder, "npy", part) if kind == "npy" else _pt_file(folder, part)
                with loading(str(path), "fetch it again"):
                    check_packed(path)
                cut += Piece.all_of(path, _cut(path, stamp(path)).n_images, ROWS)
    return cut


def electrodes_of(path: Path) -> tuple[str, ...]:
    """The electrodes that trials of a raw file have."""
    return ELECTRODES if "raw_eeg" in path.name else _cut(path, stamp(path)).names


def raw_people(folder: Path, deep: bool) -> tuple[str, list[str]]:
    """In which layout whose recordings are there, in words, and whose; deep: read them, as `pieces` does."""
    kinds = {person: kind for person in SUBJECTS if (kind := layout_of(folder / person))}
    if deep:
        pieces(folder, list(kinds), SESSIONS, None)
    layouts = f" ({', '.join(map(' '.join, kinds.items()))})" if kinds else ""
    return f"{len(kinds)} of {len(SUBJECTS)} people of THINGS{layouts}", list(kinds)


def _file(folder: Path, layout: str, part: str) -> Path:
    names = (RAW_NAMES if layout == "raw" else CUT_NAMES)[part]
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    if layout == "raw" and not path.is_file():
        raise UserError(f"{path} is missing; fetch it, or say with --sessions which sessions are to be used")
    return path


def _pt_file(folder: Path, part: str) -> Path:
    paths = sorted(path for path in folder.glob("*.pt") if path.name[0] != ".")
    paths = [path for path in paths if ("train" in path.name) == (part == "training")]
    if len(paths) != 1:
        raise UserError(f"{folder} has {len(paths)} .pt files of the {part} part; expected one")
    return paths[0]


# ---------------------------------------------------------------- the authors' recordings


@dataclass(frozen=True)
class _Raw:
    """A raw file that is open for reading."""

    signal: Array  # (64, n) volts; the row `stim` holds codes
    picks: list[int]  # rows of the electrodes, in the order of `ELECTRODES`
    stim: int
    sfreq: float
    before: int  # samples from an onset to its epoch's first one, −200,
    after: int  # and to its last one, 1000

    @property
    def n_times(self) -> int:
        """Samples of an epoch, 1201."""
        return self.after + 1 - self.before


@lru_cache(maxsize=4)
def _raw(path: Path, version: tuple[int, int]) -> _Raw:
    content = _read_dict(path, "raw recording", {"raw_eeg_data", "ch_names", "ch_types", "sfreq"})
    signal = field(path, content, "raw_eeg_data", samples, (2,))
    names, types = (field(path, content, name, texts) for name in ("ch_names", "ch_types"))
    if signal.shape[0] != len(names):
        raise UserError(f"{path}: raw_eeg_data is {signal.dtype} {signal.shape} for {len(names)} channels")
    if len(types) != len(names) or types.count("stim") != 1:
        raise UserError(f"{path}: expected one channel of type stim among its ch_types")
    sfreq = field(path, content, "sfreq", number, SFREQ, MAX_SFREQ)
    if sfreq % SFREQ:
        raise UserError(f"{path} is sampled at {sfreq} Hz; expected a multiple of {SFREQ:g} Hz")
    before, after = (round(second * sfreq) for second in EPOCH)
    return _Raw(signal, _picks(path, names), types.index("stim"), sfreq, before, after)


def _picks(path: Path, names: list[str], some: bool = False) -> list[int]:
    """Where the electrodes are among a file's channels, in the order of `ELECTRODES`; `some`: those that are there."""
    twice = [name for name, n in Counter(names).items() if n > 1]
    lacking = [name for name in ELECTRODES if name not in names]
    if twice or (lacking and not some) or len(lacking) == len(ELECTRODES):
        fault = f"{twice[0]} is there twice" if twice else f"{', '.join(lacking[:5])} is not among its ch_names"
        raise UserError(f"{path}: expected the electrodes {', '.join(ELECTRODES[:3])}, …; {fault}")
    return [names.index(name) for name in ELECTRODES if name in names]


@lru_cache(maxsize=4)
def _events(path: Path, version: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Samples and codes of all events of a recording, in order."""
    raw = _raw(path, version)
    stim = raw.signal[raw.stim : raw.stim + 1][0]
    if not np.isfinite(stim).all():
        raise UserError(f"{path}: its stim channel holds NaN or infinity")
    at = np.flatnonzero((stim != 0) & (np.diff(stim, prepend=0) != 0))  # where a pulse begins
    return at, stim[at]


@lru_cache(maxsize=4)
def _kept_events(path: Path, version: tuple[int, int], n_images: int, part: str) -> tuple[np.ndarray, ...]:
    """Onsets (samples), images (from 0) and fate of every event: "kept", "dropped: …"."""
    onsets, values = _events(path, version)
    codes = values.astype(np.int64)
    wrong = np.flatnonzero((codes != values) | (((codes < 1) | (codes > n_images)) & (codes != TARGET)))
    if len(wrong):
        code, known = values[wrong[0]], f"1 to {n_images} ({part} images) or {TARGET} (catch target)"
        where = f"{path}: the event code {code:g} at sample {onsets[wrong[0]]}"
        raise UserError(f"{where} is none of {known}; does the recording belong to these images?")
    seen, fates = Counter(), []
    for code in codes.tolist():
        seen[code] += 1
        if code == TARGET:
            fates.append("dropped: catch target")
        else:
            fates.append("kept" if seen[code] <= KEPT[part] else f"dropped: beyond {KEPT[part]} repetitions")
    return onsets, codes - 1, np.array(fates)


def _epochs(path: Path, onsets: np.ndarray, scale: float) -> np.ndarray:
    """(n, 63, 300) microvolts around onsets, baseline taken off, at 250 Hz: as MNE's Epochs and their resample."""
    raw = _raw(path, stamp(path))
    first, last = int(onsets.min()), int(onsets.max())
    stretch = raw.signal[:, first + raw.before : last + raw.after + 1][raw.picks] * scale
    if len(bad := np.flatnonzero(~np.isfinite(stretch).all(axis=1))):
        raise UserError(f"{path}: {ELECTRODES[bad[0]]} holds NaN or infinity near sample {first}; fetch it again")
    x = np.stack([stretch[:, start : start + raw.n_times] for start in onsets - first])  # (n, 63, 1201)
    x -= x[..., : 1 - raw.before].mean(axis=-1, keepdims=True)  # the onset itself is the baseline's last sample
    if raw.sfreq == SFREQ:
        return x[..., : round((EPOCH[1] - EPOCH[0]) * SFREQ)]
    return x @ _resampling(raw.n_times, raw.sfreq)


@lru_cache(maxsize=2)
def _resampling(n_times: int, sfreq: float) -> np.ndarray:
    """(n_times, 300): MNE's resampling of an epoch to 250 Hz, which is linear; it takes rows one by one, and 6 times as
    long.
    """
    from mne.filter import resample

    return resample(np.eye(n_times), SFREQ, sfreq, npad="auto", pad="edge", verbose="ERROR")


# ---------------------------------------------------------------- whitening


def whitener(covariance: np.ndarray, where: Path) -> np.ndarray:
    """Σ^(−1/2) of a covariance (C, C): what makes its electrodes uncorrelated and of unit variance."""
    values, vectors = np.linalg.eigh(covariance)
    if not values[0] > 1e-12 * values[-1]:
        cause = "an electrode never changes, or is another's copy"
        raise UserError(f"{where}: its covariance has no inverse: {cause}; --whiten none goes on")
    return (vectors / np.sqrt(values)) @ vectors.T


def shrunk_covariance(x: np.ndarray) -> np.ndarray:
    """(C, C) covariance over time of a repetition (C, T), shrunk by Ledoit and Wolf's rule on standardised channels.

    Ledoit & Wolf, J. Multivar. Anal. 88, 2004, by scikit-learn; MVNN (Guggenmos et al., NeuroImage 173, 2018) uses it.
    """
    from sklearn.covariance import ledoit_wolf

    sd = x.std(axis=1)
    sd = np.where(sd > 0, sd, 1.0)
    standard = ((x - x.mean(axis=1, keepdims=True)) / sd[:, None]).T  # (T, C)
    return ledoit_wolf(standard)[0] * sd[:, None] * sd[None]


_whiteners: dict[tuple, np.ndarray] = {}  # of a session; workers inherit what the process that starts them has made


def session_whitener(path: Path, version: tuple[int, int], n_images: int, scale: float, workers: int = 1) -> np.ndarray:
    """Σ^(−1/2) of a session: mean over repetitions, then over images, of its training part's covariances."""
    if (key := (path, version, n_images, scale)) not in _whiteners:
        onsets, images, fates = _kept_events(path, version, n_images, "training")
        good = np.flatnonzero((fates == "kept") & _inside(path, onsets))
        if not len(good):
            raise UserError(f"{path} has no training images to whiten by; --whiten none goes on without")
        repetitions = Counter(images[good].tolist())
        shares = np.array([1 / repetitions[image] for image in images[good].tolist()])
        blocks = [slice(start, start + EVENTS) for start in range(0, len(good), EVENTS)]
        jobs = [(path, onsets[good[block]], shares[block], scale) for block in blocks]
        total = sum(in_order(_sum_of_covariances, jobs, workers, "whitening"))
        _whiteners.clear()  # sessions come one after the other
        _whiteners[key] = whitener(total / len(repetitions), path)
    return _whiteners[key]


def _sum_of_covariances(path: Path, onsets: np.ndarray, shares: np.ndarray, scale: float) -> np.ndarray:
    """(C, C) of the epochs around some onsets, each times its share."""
    return sum(share * shrunk_covariance(x) for share, x in zip(shares, _epochs(path, onsets, scale), strict=True))


def whiten_ahead(piece: Piece, scale: float | None, options: dict, workers: int) -> None:
    """Make the whitener of a piece's session with all workers: each of them lives for one piece and would repeat it.

    So it would the matrix of resampling, and import what is slow to import.
    """
    if "raw_eeg" not in piece.path.name:
        return
    raw = _raw(piece.path, stamp(piece.path))
    if raw.sfreq != SFREQ:
        _resampling(raw.n_times, raw.sfreq)
    if options["whiten"] == "epochs":
        import sklearn.covariance  # noqa: F401

        _whitener_of(piece, scale, options, workers)


def _whitener_of(piece: Piece, scale: float | None, options: dict, workers: int = 1) -> np.ndarray:
    training = piece.beside[0] if piece.beside else piece.path
    n_images, microvolts = len(options["images"]["training"]), 1e6 * (scale or 1.0)
    return session_whitener(training, stamp(training), n_images, microvolts, workers)


def _inside(path: Path, onsets: np.ndarray) -> np.ndarray:
    """Which onsets have their whole epoch in the recording."""
    raw = _raw(path, stamp(path))
    return (onsets + raw.before >= 0) & (onsets + raw.after < raw.signal.shape[1])


# ---------------------------------------------------------------- arrays that are cut already


@dataclass(frozen=True)
class _Cut:
    """A preprocessed file that is open for reading."""

    eeg: Array  # (n_images, repetitions, C, T), or (n_images × repetitions, C, T)
    picks: list[int]
    names: tuple[str, ...]  # electrodes, in the order of `picks`
    times: np.ndarray  # seconds, of the samples that are there
    sfreq: float
    repetitions: int
    rows_per_image: int  # of `eeg`
    images: tuple[str, ...]  # of every row of the flat array; empty where the order of codes tells
    sessions: tuple[str, ...]

    @property
    def n_images(self) -> int:
        return self.eeg.shape[0] // self.rows_per_image


@lru_cache(maxsize=4)
def _cut(path: Path, version: tuple[int, int]) -> _Cut:
    content = _read_dict(path, "preprocessed recording", {"ch_names", "times"})
    key = next((key for key in CUT_KEYS if key in content), CUT_KEYS[0])
    eeg, names = content.get(key), field(path, content, "ch_names", texts)
    if len(getattr(eeg, "shape", ())) == 5:  # (concepts, images of each, …): images one after the other, as codes are
        eeg = _with_first_axes_joined(path, eeg)
    eeg = field(path, {key: eeg}, key, samples, (3, 4))
    shape = eeg.shape
    if shape[-2] != len(names):
        raise UserError(f"{path}: {key} is {shape} for {len(names)} electrodes")
    times, sfreq = _times(path, content, shape[-1])
    images = _per_row(path, content, "img", shape)
    rows_per_image = 1 if len(shape) == 4 else _rows_per_image(path, key, images)
    repetitions = shape[1] if len(shape) == 4 else rows_per_image
    sessions, picks = _per_row(path, content, "session", shape), _picks(path, names, some=True)
    electrodes = tuple(names[k] for k in picks)
    return _Cut(eeg, picks, electrodes, times, sfreq, repetitions, rows_per_image, images, sessions)


def _times(path: Path, content: dict, n_times: int) -> tuple[np.ndarray, float]:
    """Seconds of the samples that are there, and their rate, Hz; files may list those before the onset as well."""
    times = field(path, content, "times", numbers, 1e4)
    after = times[times >= -1e-6]
    if len(times) < 2 or not np.diff(times).min() > 1 / MAX_SFREQ or n_times not in (len(times), len(after)):
        listed = f"{len(times)} values ({len(after)} from the onset on), the data {n_times} samples"
        raise UserError(f"{path}: times has {listed}; expected as many, one after the other")
    return times if n_times == len(times) else after, round(1 / float(np.diff(times).mean()), 3)


def _rows_per_image(path: Path, key: str, images: tuple[str, ...]) -> int:
    if not images:
        raise UserError(f"{path}: {key} has no axis of repetitions, and no img says which image a row is")
    counts = Counter(images)
    usual = mode(counts.values())
    if odd := next((image for image, n in counts.items() if n != usual), None):
        raise UserError(f"{path}: {odd} has {counts[odd]} rows, other images {usual}; expected as many of each")
    return usual


def _with_first_axes_joined(path: Path, eeg: Array) -> Array:
    shape = (eeg.shape[0] * eeg.shape[1], *eeg.shape[2:])
    if isinstance(eeg, np.ndarray):
        return eeg.reshape(shape)
    if eeg.axes is not None:
        raise UserError(f"{path} holds an array column by column; save it anew with NumPy, row by row")
    return replace(eeg, stored=shape)


def _per_row(path: Path, content: dict, key: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """One text for every row of the flat array: as it is given, or a text an image, repeated; empty where none is."""
    if key not in content:
        return ()
    values = field(path, content, key, texts)  # UBP's sessions are 0.0 to 3.0
    n = shape[0] * (shape[1] if len(shape) == 4 else 1)
    if not values or n % len(values):
        raise UserError(f"{path}: {key} has {len(values)} values for {n} trials")
    return tuple(value for value in values for _ in range(n // len(values)))


# ---------------------------------------------------------------- a piece → trials


def prepare_piece(piece: Piece, settings: Preprocessing, scale: float | None, options: dict) -> Prepared:
    """The trials of a piece; counts by (fate, subject, part); facts. `options`: whiten, images by part, concepts."""
    part = "test" if "test" in piece.path.name else "training"
    prepare = _prepare_raw if "raw_eeg" in piece.path.name else _prepare_cut
    return prepare(piece, settings, scale, options, part)


def _prepare_raw(piece: Piece, settings: Preprocessing, scale: float | None, options: dict, part: str) -> Prepared:
    path, images = piece.path, options["images"]
    subject, session = path.parent.parent.name, str(int(path.parent.name.removeprefix("ses-")))
    onsets, codes, fates = _kept_events(path, stamp(path), len(images[part]), part)
    fates = np.where((fates == "kept") & ~_inside(path, onsets), "dropped: window leaves the recording", fates)
    events = np.arange(piece.start, piece.stop)
    counts = Counter((fate, subject, part) for fate in fates[events].tolist())
    good, trials, amplitude = events[fates[events] == "kept"], [], None
    if len(good):
        x = _epochs(path, onsets[good], 1e6 * (scale or 1.0))  # (n, 63, 300)
        amplitude = float(np.median(x.std(axis=-1)))
        check_amplitude(f"{path}: the median standard deviation of an epoch", amplitude, scale)
        flat = [name for name, sd in zip(ELECTRODES, x.std(axis=(0, 2)), strict=True) if sd == 0]
        if flat and not piece.start:
            print(f"notice: {path}: {', '.join(flat)} never changes; kept as it is")
        if options["whiten"] == "epochs":
            x = _whitener_of(piece, scale, options) @ x
        start, stop = (round((second - EPOCH[0]) * SFREQ) for second in (settings.tmin, settings.tmax))
        for place, of_trial in zip(good.tolist(), x[..., start:stop].astype(DTYPE), strict=True):
            trials.append((_trial(subject, session, part, place + 1, images[part][codes[place]], options), of_trial))
    return trials, counts, [_facts(subject, session, part, "raw", SFREQ, amplitude)]


def _prepare_cut(piece: Piece, settings: Preprocessing, scale: float | None, options: dict, part: str) -> Prepared:
    path, images, subject = piece.path, options["images"][part], piece.path.parent.name
    cut = _cut(path, stamp(path))
    if not cut.images and cut.n_images != len(images):
        raise UserError(f"{path} has {cut.n_images} images; image_metadata.npy or the folders list {len(images)}")
    if cut.times[0] > settings.tmin + 0.5 / cut.sfreq:
        raise UserError(f"{path} begins {cut.times[0]:g} s after the onset; --tmin {settings.tmin:g} asks for more")
    keep = (cut.times >= settings.tmin - 1e-6) & (cut.times < settings.tmax - 1e-6)
    each = cut.repetitions
    x = cut.eeg[piece.start * cut.rows_per_image : piece.stop * cut.rows_per_image]
    x = x.reshape(-1, *x.shape[-2:])[:, cut.picks]  # (n_images × n_repetitions, C, T)
    x = np.asarray(x[..., keep], DTYPE) * np.float32(scale or 1.0)
    if len(bad := np.flatnonzero(~np.isfinite(x).all(axis=(1, 2)))):
        image, repetition = divmod(int(bad[0]), each)
        where = f"repetition {repetition + 1} of image {piece.start + image + 1}"
        raise UserError(f"{path}: {where} holds NaN or infinity")
    trials = []
    for row, of_trial in enumerate(x, start=piece.start * each):
        image = _known(path, cut.images[row], images) if cut.images else images[row // each]
        session = cut.sessions[row] if cut.sessions else "all"
        trials.append((_trial(subject, session, part, row + 1, image, options), of_trial))
    facts = _facts(subject, "all", part, path.suffix[1:], cut.sfreq, None)
    return trials, Counter({("kept", subject, part): len(trials)}), [facts]


def _facts(subject: str, session: str, part: str, kind: str, sfreq: float, amplitude: float | None) -> dict:
    origin = {"subject": subject, "session": session, "run": PARTS[part], "kind": kind}
    return origin | {"sfreq": sfreq, "median_sd_microvolts": amplitude}


def _known(path: Path, image: str, images: Sequence[str]) -> str:
    """The image that a file's own path means, by its folder and name."""
    tail = "/".join(Path(image.replace("\\", "/")).parts[-2:])
    if (known := _by_tail(tuple(images)).get(tail)) is None:
        raise UserError(f"{path} names the image {tail}, which is not among the images; are they of another data set?")
    return known


@lru_cache(maxsize=2)
def _by_tail(images: tuple[str, ...]) -> dict[str, str]:
    return {"/".join(image.split("/")[-2:]): image for image in images}


def _trial(subject: str, session: str, part: str, number: int, image: str, options: dict) -> Trial:
    run, label = PARTS[part], options["labels"][concept_of(image)]
    return Trial(f"{subject}-{session}-r{run}-t{number:05d}", label, subject, session, run, number, image)


# ---------------------------------------------------------------- what is expected, who trains and who tests


def table(meta: dict, counts: Counter) -> list[str]:
    """A line a person and part: trials kept, expected and complete; what was dropped, by cause; repetitions."""
    n_images = {part: len(images) for part, images in meta["options"]["images"].items()}
    sessions, kinds = defaultdict(set), {}
    for recording in (recording for source in meta["sources"] for recording in source["recordings"]):
        sessions[recording["subject"], recording["run"]].add(recording["session"])
        kinds[recording["subject"]] = recording["kind"]
    fates = sorted({fate for fate, *_ in counts if str(fate).startswith("dropped")})
    heads = "".join(f"{fate.removeprefix('dropped: '):>28}" for fate in fates)
    lines = [f"{'':10}{'part':10}{'trials':>8}{'expected':>10}{heads}"]
    # a concept is shown in two of four sessions, twice each: half of the images, two times, a session
    in_session = {"training": KEPT["training"] // 2, "test": KEPT["test"]}
    for subject in sorted(kinds):
        for part, run in PARTS.items():
            n_sessions = len(sessions[subject, run]) if kinds[subject] == "raw" else len(SESSIONS)
            expected = n_sessions * n_images[part] * in_session[part]
            cells = "".join(f"{counts[fate, subject, part]:28d}" for fate in fates)
            lines.append(f"{subject:10}{part:10}{counts['kept', subject, part]:8d}{expected:10d}{cells}")
    usual = f"{n_images['training']} training images 4 times, {n_images['test']} test images 80 times"
    design = "the data set has 16,540 and 200, of 10 people in 4 sessions"
    lines += ["", f"expected: {usual} (raw: as many of that as there are sessions); {design}"]
    if lacking := [subject for subject in SUBJECTS if subject not in kinds]:
        lines.append(f"not prepared: {', '.join(lacking)}")
    if meta["options"]["whiten"] == "none" and "raw" in kinds.values():
        lines.append("not whitened: microvolts, as --encoder csbrain reads them")
    return lines


def parts(trials: Sequence[Trial], of_store: Sequence[Trial]) -> list[str]:
    """Test images test; the training images of some concepts, the same in every run, validate; the others train."""
    training = sorted({t.label for t in of_store if t.image.startswith("training_images/")})
    n = min(HELD_OUT, max(2, len(training) // 6))  # 100 of the published 1,654; one alone could not be confused
    held_out = set(np.random.default_rng(0).choice(training, n, replace=False).tolist()) if len(training) > 3 else set()
    return ["test" if t.image.startswith("test_images/") else "val" if t.label in held_out else "train" for t in trials]


DESCRIPTION = DatasetDescription(
    name="THINGS",
    montage=montage_of(ELECTRODES)[0],
    classes=(),  # the store says them: the concepts of its images
    window=(0.0, 1.0),
    window_starts="the image's onset",
    reference="none",  # recorded against Fz, which is absent
    prepare_piece=prepare_piece,
    ahead=whiten_ahead,
    table=table,
    everyone=SUBJECTS,
    raw_people=raw_people,
    parts=parts,
    apart="concept",
    channels={"posterior": POSTERIOR},
    some_electrodes=True,
)

import numpy as np
import pytest
import scipy.io

from datasets import mne_recordings
from datasets.mne_recordings import status_events
from datasets.visual_imagery_llm_dataset import MONTAGE as VI
from datasets.visual_imagery_llm_dataset import SUBJECTS, files, origin, recordings
from demo.vi_like import write_bdf, write_fif, write_tsv
from utils.errors import UserError

EVENTS = [(500, 1), (1500, 2), (2500, 3)]


def read_recording(path):
    return mne_recordings.read_recording(path, VI.electrodes)


@pytest.fixture
def signal():
    """Four seconds of 10 µV noise on 32 electrodes, with offsets that tell them apart."""
    rng = np.random.default_rng(0)
    return 10 * rng.standard_normal((32, 4000)) + np.arange(32)[:, None]


@pytest.fixture
def eeg(tmp_path):
    folder = tmp_path / "sub-01/ses-01/eeg"
    folder.mkdir(parents=True)
    return folder


def name(folder, suffix):
    return folder / f"sub-01_ses-01_task-AVI_eeg{suffix}"


def write_edf(path, signal, dimension="uV"):
    """A plain EDF file: 16-bit samples of 0.1 µV."""
    n, n_records = len(signal), signal.shape[1] // 1000

    def column(values, width):
        return "".join(f"{value:<{width}}" for value in values)

    fixed = f"{'0':8}{'':80}{'':80}{'01.01.26':8}{'00.00.00':8}{256 * (n + 1):<8}{'':44}{n_records:<8}{1:<8}{n:<4}"
    header = (
        column(VI.electrodes, 16) + column([""] * n, 80) + column([dimension] * n, 8) + column([-3276.8] * n, 8)
        + column([3276.7] * n, 8) + column([-32768] * n, 8) + column([32767] * n, 8) + column([""] * n, 80)
        + column([1000] * n, 8) + column([""] * n, 32)
    )  # fmt: skip
    counts = np.round(signal * 10).astype("<i2").reshape(n, n_records, 1000).transpose(1, 0, 2)
    path.write_bytes(fixed.encode() + header.encode() + counts.tobytes())


def write_set(path, signal):
    """EEGLAB's format, as one MATLAB file."""
    chanlocs = np.array([(label,) for label in VI.electrodes], dtype=[("labels", object)])
    events = np.array([(k + 1.0, str(code)) for k, code in EVENTS], dtype=[("latency", object), ("type", object)])
    eeg = {
        "setname": "", "nbchan": 32.0, "pnts": float(signal.shape[1]), "trials": 1.0, "srate": 1000.0, "xmin": 0.0,
        "xmax": 4.0, "data": signal, "chanlocs": chanlocs, "event": events, "icawinv": [], "icaweights": [],
        "icasphere": [], "epoch": [], "history": "",
    }  # fmt: skip
    scipy.io.savemat(path, {"EEG": eeg}, appendmat=False)


def write_vhdr(path, signal):
    """BrainVision's format: header, markers, 32-bit floats in microvolts."""
    stem = path.with_suffix("")
    channels = "\n".join(f"Ch{k}={label},,1,µV" for k, label in enumerate(VI.electrodes, start=1))
    markers = "\n".join(f"Mk{k + 2}=Stimulus,S{code:3d},{at + 1},1,0" for k, (at, code) in enumerate(EVENTS))
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={stem.name}.eeg\nMarkerFile={stem.name}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        f"NumberOfChannels=32\nSamplingInterval=1000\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n[Channel Infos]\n{channels}\n"
    )
    stem.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={stem.name}.eeg\n[Marker Infos]\nMk1=New Segment,,1,1,0\n{markers}\n"
    )
    stem.with_suffix(".eeg").write_bytes(signal.T.astype("<f4").tobytes())


# ---------------------------------------------------------------- real recordings


@pytest.mark.parametrize("subject, sources, n_corrections", [
    ("S01", {"events.tsv", "Status"}, 1), ("S17", {"events.tsv", "annotations"}, 0), ("S20", {"Status"}, 2),
])  # fmt: skip
def test_real_files_give_microvolts_and_agreeing_events(shared, subject, sources, n_corrections):
    found = files(shared / "real/visual_imagery_raw", [subject])
    assert [origin(path) for path in found] == [(subject, "01", task) for task in ("AVI", "FVI", "OVI")]
    for path in found:
        recording = read_recording(path)
        assert {source.split("_")[-1] for source in recording.sources} == sources
        assert len(recording.corrections) == n_corrections
        assert [sample for sample, _ in recording.events] == [4200, 12500, 20800]
        assert 40 < np.median(recording.signal.std(axis=1)) < 80  # as its README states, before filtering


# ---------------------------------------------------------------- units and formats


@pytest.mark.parametrize("digital, dimension, corrections", [
    ((-32768, 32767), "uV", ["divided by 256"]), ((-32768, 32767), "", ["divided by 256", "taken for microvolts"]),
    ((-(2**23), 2**23 - 1), "uV", []), ((-(2**23), 2**23 - 1), "", ["taken for microvolts"]),
])  # fmt: skip
def test_a_bdf_gives_the_microvolts_that_were_recorded_whatever_its_header_claims(
    eeg, signal, digital, dimension, corrections
):
    write_bdf(name(eeg, ".bdf"), signal, EVENTS, digital=digital, dimension=dimension)
    recording = read_recording(name(eeg, ".bdf"))
    assert np.abs(recording.signal - signal).max() < 0.05  # a step is 0.022 µV
    assert len(recording.corrections) == len(corrections)
    assert all(part in what for part, what in zip(corrections, recording.corrections, strict=True))
    assert recording.events == EVENTS and recording.sources == ["Status"]


def test_all_formats_give_the_same_signal_and_events(eeg, signal):
    write_fif(name(eeg, ".fif"), signal, EVENTS)
    write_edf(name(eeg, ".edf"), signal)
    write_set(name(eeg, ".set"), signal)
    write_vhdr(name(eeg, ".vhdr"), signal)
    for suffix, events in ((".fif", EVENTS), (".edf", []), (".set", EVENTS), (".vhdr", EVENTS)):
        recording = read_recording(name(eeg, suffix))
        assert np.abs(recording.signal - signal).max() < 0.06, suffix
        assert recording.events == events and recording.corrections == [] and recording.sfreq == 1000, suffix


def test_electrodes_are_picked_by_name_and_not_by_position(eeg, signal):
    order = np.random.default_rng(1).permutation(32)
    labels = tuple(VI.electrodes[k].upper() for k in order)
    write_bdf(name(eeg, ".bdf"), signal[order], EVENTS, labels=labels)
    assert np.abs(read_recording(name(eeg, ".bdf")).signal - signal).max() < 0.05


# ---------------------------------------------------------------- events


@pytest.mark.parametrize("rest", [0, 131071])
def test_status_rests_at_its_most_frequent_value(rest):
    status = np.full(1000, rest)
    status[100:110], status[110:112], status[500] = 3, 2, 1
    assert status_events(status) == [(100, 3), (110, 2), (500, 1)]


def test_a_cropped_fif_counts_samples_from_its_own_start(eeg, signal):
    import mne

    write_fif(name(eeg, ".fif"), signal, EVENTS)
    raw = mne.io.read_raw_fif(name(eeg, ".fif"), preload=True, verbose="ERROR").crop(tmin=1.0)
    raw.save(name(eeg, ".fif"), overwrite=True, verbose="ERROR")
    recording = read_recording(name(eeg, ".fif"))
    assert recording.events == [(500, 2), (1500, 3)]


@pytest.mark.parametrize("change, message", [
    ([(500, 1), (1500, 2), (2502, 3)], "event 3 is code 3 at sample 2502"), ([(500, 1), (1500, 3), (2500, 3)], "event 2 is code 3"),
    (EVENTS[:2], "2 events in sub-01_ses-01_task-AVI_events.tsv, 3 in Status"),
])  # fmt: skip
def test_a_tsv_that_disagrees_with_status_is_refused(eeg, signal, change, message):
    write_bdf(name(eeg, ".bdf"), signal, EVENTS)
    write_tsv(eeg / "sub-01_ses-01_task-AVI_events.tsv", [(k - (k == 1500), code) for k, code in EVENTS])
    assert read_recording(name(eeg, ".bdf")).events[1] == (1499, 2)  # a sample of difference passes, and the TSV wins
    write_tsv(eeg / "sub-01_ses-01_task-AVI_events.tsv", change)
    with pytest.raises(UserError, match=message):
        read_recording(name(eeg, ".bdf"))


@pytest.mark.parametrize("text, message", [
    ("onset\tvalue\n0.5\tx\n", "line 2.*expected numbers"), ("start\tvalue\n1\t1\n", "columns start, value"),
    ("onset\tlatency\tvalue\n0.5\t900\t1\n", r"samples \[500, 900\]"), ("onset\tvalue\n99\t1\n", "an event at sample 99000"),
])  # fmt: skip
def test_a_damaged_tsv_is_refused_with_its_line(eeg, signal, text, message):
    write_fif(name(eeg, ".fif"), signal, [])
    (eeg / "sub-01_ses-01_task-AVI_events.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_recording(name(eeg, ".fif"))


@pytest.mark.parametrize("content", ["onset\tvalue\n0.5\t1\n".encode("utf-16"), "onset\tvalue\tn\n0.5\t1\té\n".encode("latin-1"),
                                     b"onset\tvalue\n0.5\t1.9\n"])  # fmt: skip
def test_a_tsv_in_another_encoding_or_with_half_codes_is_refused(eeg, signal, content):
    write_fif(name(eeg, ".fif"), signal, [])
    (eeg / "sub-01_ses-01_task-AVI_events.tsv").write_bytes(content)
    with pytest.raises(UserError, match="sub-01_ses-01_task-AVI_events.tsv"):
        read_recording(name(eeg, ".fif"))


def test_samples_serve_where_a_tsv_has_no_onset(eeg, signal):
    write_fif(name(eeg, ".fif"), signal, [])
    (eeg / "sub-01_ses-01_task-AVI_events.tsv").write_text("sample\tvalue\tnote\n500\t1\ta\n1500\t2\tb\n2500\t3.0\tc\n")
    assert read_recording(name(eeg, ".fif")).events == EVENTS


# ---------------------------------------------------------------- bad files


@pytest.mark.parametrize("suffix", [".bdf", ".fif", ".edf"])
def test_a_truncated_file_is_refused(eeg, signal, suffix):
    path = name(eeg, suffix)
    write = {".bdf": write_bdf, ".fif": write_fif, ".edf": lambda path, signal, events: write_edf(path, signal)}[suffix]
    write(path, signal, EVENTS)
    for share in (0.6, 0.01):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=f"{path.name}.*(truncated|damaged)"):
            read_recording(path)
        path.write_bytes(whole)


def test_missing_electrodes_are_named(eeg, signal):
    labels = tuple({"Oz": "A1", "TP7": "A2"}.get(label, label) for label in VI.electrodes)
    write_bdf(name(eeg, ".bdf"), signal, EVENTS, labels=labels)
    with pytest.raises(UserError, match="sub-01_ses-01_task-AVI_eeg.bdf has no electrode TP7, Oz"):
        read_recording(name(eeg, ".bdf"))


def test_nan_is_named_with_electrode_and_sample(eeg, signal):
    signal[3, 1234] = np.nan
    write_vhdr(name(eeg, ".vhdr"), signal)
    with pytest.raises(UserError, match="NaN or infinity in Fz at sample 1234"):
        read_recording(name(eeg, ".vhdr"))


def test_two_files_of_one_recording_are_refused(eeg, signal):
    write_bdf(name(eeg, ".bdf"), signal, EVENTS)
    write_fif(name(eeg, ".fif"), signal, EVENTS)
    with pytest.raises(UserError, match="same recording"):
        files(eeg.parent, SUBJECTS)
    assert files(eeg.parent, ["S02"]) == []


def test_leftovers_are_skipped_and_strange_names_are_said(eeg, signal, capsys):
    write_bdf(eeg / "sub-01_ses-01_task-AVI_eeg.BDF", signal, EVENTS)
    leftover = eeg / ".sub-01_ses-01_task-AVI_eeg.bdf.part-x"
    leftover.mkdir()
    (leftover / "sub-01_ses-01_task-AVI_eeg.bdf").write_bytes(b"half")
    (eeg / "sub-01_ses-01_task-AVI_run-01_eeg.bdf").write_bytes(b"x")
    (path,) = files(eeg.parent, SUBJECTS)
    assert read_recording(path).events == EVENTS and origin(path) == ("S01", "01", "AVI")
    assert "run-01_eeg.bdf is left out" in capsys.readouterr().out


# ---------------------------------------------------------------- from events to trials


def test_labels_are_local_to_a_task_and_codes_that_it_does_not_know_are_left_out(eeg, signal):
    path = eeg / "sub-12_ses-02_task-OVI_eeg.bdf"
    write_bdf(path, signal, [(500, 4), (1500, 5), (2500, 1)])
    (recording,) = recordings(path)
    assert (recording.subject, recording.session, recording.run) == ("S12", "02", 3)
    assert recording.labels.tolist() == [9, 6] and recording.onsets.tolist() == [500, 2500]
    assert recording.numbers.tolist() == [1, 3]  # a trial keeps its number where another is left out
    assert recording.left_out == {("dropped: code that the task does not know", "02 OVI 5"): 1}

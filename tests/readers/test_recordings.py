import struct

import numpy as np
import pytest
import scipy.io

from datasets.visual_imagery_llm_dataset import MONTAGE as VI
from datasets.visual_imagery_llm_dataset import SUBJECTS, files, origin, recordings
from demo.vi_like import write_bdf, write_fif, write_tsv
from readers import recordings as reader
from utils import limits
from utils.errors import UserError

EVENTS = [(500, 1), (1500, 2), (2500, 3)]


def read_recording(path):
    return reader.read_recording(path, VI.electrodes)


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
        "NumberOfChannels=32\nSamplingInterval=1000\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n"
        f"[Channel Infos]\n{channels}\n"
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
    assert reader.status_events(status) == [(100, 3), (110, 2), (500, 1)]


def test_a_cropped_fif_counts_samples_from_its_own_start(eeg, signal):
    import mne

    write_fif(name(eeg, ".fif"), signal, EVENTS)
    raw = mne.io.read_raw_fif(name(eeg, ".fif"), preload=True, verbose="ERROR").crop(tmin=1.0)
    raw.save(name(eeg, ".fif"), overwrite=True, verbose="ERROR")
    recording = read_recording(name(eeg, ".fif"))
    assert recording.events == [(500, 2), (1500, 3)]


@pytest.mark.parametrize("change, message", [
    ([(500, 1), (1500, 2), (2502, 3)], "event 3 is code 3 at sample 2502"),
    ([(500, 1), (1500, 3), (2500, 3)], "event 2 is code 3"),
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
    ("onset\tlatency\tvalue\n0.5\t900\t1\n", r"samples \[500, 900\]"),
    ("onset\tvalue\n99\t1\n", "an event at sample 99000"),
])  # fmt: skip
def test_a_damaged_tsv_is_refused_with_its_line(eeg, signal, text, message):
    write_fif(name(eeg, ".fif"), signal, [])
    (eeg / "sub-01_ses-01_task-AVI_events.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_recording(name(eeg, ".fif"))


UTF_16, LATIN_1 = "onset\tvalue\n0.5\t1\n".encode("utf-16"), "onset\tvalue\tn\n0.5\t1\té\n".encode("latin-1")


@pytest.mark.parametrize("content", [UTF_16, LATIN_1, b"onset\tvalue\n0.5\t1.9\n"])
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


# ---------------------------------------------------------------- headers that cannot be right


def field(name, electrode=0, n=33):
    """Where a field of a BDF or EDF header begins, and how wide it is; of one channel where there are several."""
    fixed = {"header": (184, 8), "records": (236, 8), "duration": (244, 8), "channels": (252, 4)}
    if name in fixed:
        return fixed[name]
    limits = dict(physical_min=8, physical_max=8, digital_min=8, digital_max=8)
    widths = dict(label=16, transducer=80, dimension=8) | limits | dict(prefilter=80, samples=8)
    before = sum(width for other, width in widths.items() if list(widths).index(other) < list(widths).index(name))
    return 256 + n * before + electrode * widths[name], widths[name]


def say(path, name, text):
    at, width = field(name, n=int(path.read_bytes()[252:256]))
    content = bytearray(path.read_bytes())
    content[at : at + width] = f"{text:<{width}}".encode()
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".bdf", ".edf"])
@pytest.mark.parametrize("name_of, text, message", [
    ("duration", "nan", "a record lasts nan s; expected more than 0"), ("duration", "0", "a record lasts 0 s"),
    ("duration", "-1", "a record lasts -1 s"), ("duration", "inf", "a record lasts inf s"),
    ("duration", "1 s", "a record lasts nan s"),
    ("duration", "1e-308", "sampled at inf Hz|cannot be read"), ("channels", "0", "0 channels; expected 1 or more"),
    ("channels", "-5", "-5 channels"), ("channels", "x", "header is damaged"), ("header", "256", "256 bytes; expected"),
    ("header", "9999999", "9999999 bytes; expected"), ("records", "0", "0 records; expected 1 or more, or -1"),
    ("records", "-2", "-2 records"), ("records", "9", "is truncated"), ("samples", "0", "0 samples a record of Fpz"),
    ("samples", "-1", "-1 samples"), ("samples", "99999999", "is truncated"),
    ("physical_min", "nan", "nan and .* for the physical limits of Fpz; expected two different"),
    ("physical_max", "inf", "inf for the physical limits"), ("physical_min", "", "nan and"),
    ("digital_max", "-inf", "digital limits of Fpz"),
    ("digital_min", "32767", "32767 and 32767 for the digital limits of Fpz"),
])  # fmt: skip
def test_a_header_that_cannot_be_right_is_refused(eeg, signal, suffix, name_of, text, message):
    path = name(eeg, suffix)
    write_bdf(path, signal, EVENTS) if suffix == ".bdf" else write_edf(path, signal)
    say(path, name_of, text)
    with pytest.raises(UserError, match=f"{path.name}.*({message})"):
        read_recording(path)


def test_names_of_channels_that_cannot_be_printed_are_not(eeg, signal):
    write_edf(name(eeg, ".edf"), signal)
    say(name(eeg, ".edf"), "label", "F\xad\x1b")  # a soft hyphen, which a terminal does not show
    with pytest.raises(UserError, match="has no electrode Fpz") as error:
        read_recording(name(eeg, ".edf"))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("suffix", [".bdf", ".edf"])
def test_equal_physical_limits_are_refused(eeg, signal, suffix):
    path = name(eeg, suffix)
    write_bdf(path, signal, EVENTS) if suffix == ".bdf" else write_edf(path, signal)
    for kind in ("physical_min", "physical_max"):
        say(path, kind, "5")
    with pytest.raises(UserError, match="5 and 5 for the physical limits of Fpz; expected two different"):
        read_recording(path)


@pytest.mark.parametrize("suffix", [".bdf", ".edf"])
def test_a_header_may_leave_the_number_of_records_open_where_all_of_them_are_whole(eeg, signal, suffix, capsys):
    path = name(eeg, suffix)
    write_bdf(path, signal, EVENTS) if suffix == ".bdf" else write_edf(path, signal)
    whole = read_recording(path).signal
    say(path, "records", "-1")
    assert np.array_equal(read_recording(path).signal, whole)
    assert f"notice: {path}: its header leaves the number of records open; 4 are there" in capsys.readouterr().out
    content = path.read_bytes()
    record = (len(content) - 256 * (1 + int(content[252:256]))) // 4
    for n_bytes in (
        len(content) - 1,
        len(content) - record // 2,
        len(content) - 4 * record + 7,
        len(content) - 4 * record,
    ):
        path.write_bytes(content[:n_bytes])
        with pytest.raises(UserError, match="is truncated: .* no whole number of records"):
            read_recording(path)
    path.write_bytes(content[:-record])
    if suffix == ".edf":
        assert read_recording(path).signal.shape == (32, 3000)


def test_what_the_header_says_of_other_channels_does_not_matter(eeg, signal):
    path = name(eeg, ".bdf")
    write_bdf(path, np.vstack([signal, signal[:1]]), EVENTS, labels=(*VI.electrodes, "AUX"))
    content = bytearray(path.read_bytes())
    at, width = field("physical_max", electrode=32, n=34)
    low, _ = field("physical_min", electrode=32, n=34)
    content[at : at + width] = content[low : low + width]
    path.write_bytes(content)
    assert np.abs(read_recording(path).signal - signal).max() < 0.05


def test_one_channel_at_a_rate_of_its_own_may_not_blow_up_all_others(eeg, signal):
    path = name(eeg, ".edf")
    write_edf(path, signal)
    n_samples = 6_000_000
    for electrode in range(32):
        at, width = field("samples", electrode, n=32)
        content = bytearray(path.read_bytes())
        content[at : at + width] = f"{n_samples if electrode == 31 else 1:<{width}}".encode()
        path.write_bytes(content)
    say(path, "records", "1")
    path.write_bytes(path.read_bytes()[: 256 * 33] + bytes(2 * (31 + n_samples)))
    with pytest.raises(
        UserError, match="12008510 bytes and would take 1464 MB: one channel has 6000000 samples a record"
    ):
        read_recording(path)


# ---------------------------------------------------------------- tables of events from strangers


@pytest.mark.parametrize("content, message", [
    (bytes(range(256)) * 20, "cannot be read as UTF-8|columns"), (b"\x00" * 500, "columns|cannot be read"),
    (b"onset\n0.5\n", "columns onset"), (b"\nonset\tvalue\n0.5\t1\n", "no columns in its first line"),
    (b"onset\tvalue\nnan\t1\n", "line 2.*expected numbers"), (b"onset\tvalue\ninf\t1\n", "line 2"),
    (b"onset\tvalue\n-inf\t1\n", "line 2"),
    (b"onset\tvalue\n0.5\tnan\n", "line 2"), (b"onset\tvalue\n0.5\tinf\n", "line 2"),
    (b"onset\tvalue\n1e300\t1\n", "line 2"),
    (b"onset\tvalue\n0.5\t1e300\n", "line 2"), (b"sample\tvalue\n%s\t1\n" % (b"9" * 400), "line 2"),
    (b"onset\tvalue\n0.5\t1\n\n0.6\n", "line 4"),
    (b"onset\tvalue\tvalue\n0.5\t1\t2\n", "columns onset, value, value; expected .* once"),
    (b"onset\tonset\tvalue\n0.5\t1\t2\n", "columns onset, onset, value"),
    (b"onset\tvalue\n0.5\t%s\n" % (b"1" * 200_000), "field larger"),
    (b"\x1b[2J" * 90, r"columns \?"),
])  # fmt: skip
def test_a_table_of_events_that_cannot_be_right_ends_in_a_short_line(eeg, signal, content, message):
    write_fif(name(eeg, ".fif"), signal, [])
    (eeg / "sub-01_ses-01_task-AVI_events.tsv").write_bytes(content)
    with pytest.raises(UserError, match=f"sub-01_ses-01_task-AVI_events.tsv.*({message})") as error:
        read_recording(name(eeg, ".fif"))
    assert len(str(error.value).replace(str(eeg), "")) < 500 and str(error.value).isprintable()


def test_a_table_of_events_may_not_be_endless(eeg, signal):
    write_fif(name(eeg, ".fif"), signal, [])
    (eeg / "sub-01_ses-01_task-AVI_events.tsv").write_bytes(b"onset\tvalue\n" + b"0.5\t1\n" * 2_000_000)
    with pytest.raises(UserError, match="12000012 bytes; such a file has at most"):
        read_recording(name(eeg, ".fif"))


def test_columns_that_are_not_read_may_come_twice(eeg, signal):
    write_fif(name(eeg, ".fif"), signal, [])
    (eeg / "sub-01_ses-01_task-AVI_events.tsv").write_text("onset\tvalue\tnote\tnote\t\t\n0.5\t1\ta\tb\t\t\n")
    assert read_recording(name(eeg, ".fif")).events == [(500, 1)]


# ---------------------------------------------------------------- files that a file names


@pytest.mark.parametrize("entry, message", [
    ("DataFile=../../../../secret.eeg", "names the file .*secret.eeg; expected one beside it"),
    ("DataFile=/etc/passwd", "names the file /etc/passwd"),
    ("MarkerFile=../secret.vmrk", "names the file"), ("MarkerFile=/etc/passwd", "names the file /etc/passwd"),
    ("markerfile : /etc/passwd", "names the file /etc/passwd"), ("DataFile=sub/data.eeg", "names the file"),
    ("DataFile=", "names the file"),
    ("DataFile=gone.eeg", "gone.eeg, which is missing"), ("MarkerFile=gone.vmrk", "gone.vmrk, which is missing"),
    ("DataFile=" + "x" * 5000, "which is missing"), ("DataFile=a\0b", "which is missing"),
])  # fmt: skip
def test_a_brainvision_header_may_name_files_beside_it_only(eeg, signal, entry, message):
    path = name(eeg, ".vhdr")
    write_vhdr(path, signal)
    lines = path.read_text().splitlines()
    kind = "DataFile" if entry.startswith("DataFile") else "MarkerFile"
    path.write_text("\n".join(entry if line.startswith(kind) else line for line in lines))
    with pytest.raises(UserError, match=f"{path.name} {message}" if "missing" not in message else message):
        read_recording(path)


def test_a_second_entry_hides_no_file_elsewhere(eeg, signal):
    path = name(eeg, ".vhdr")
    write_vhdr(path, signal)
    path.write_text(path.read_text().replace(f"MarkerFile={path.stem}.vmrk", "MarkerFile=/etc/passwd")
                    + f"\n[More]\nMarkerFile={path.stem}.vmrk\n")  # fmt: skip
    with pytest.raises(UserError, match="names the file /etc/passwd"):
        read_recording(path)


@pytest.mark.parametrize("n_bytes", [-1, -64_000, 0])
def test_truncated_brainvision_data_is_refused_where_markers_or_a_sample_are_cut(eeg, signal, n_bytes):
    path = name(eeg, ".vhdr")
    write_vhdr(path, signal)
    data = path.with_suffix(".eeg").read_bytes()
    path.with_suffix(".eeg").write_bytes(data[: 2400 * 32 * 4] if n_bytes == -64_000 else data[:n_bytes])
    with pytest.raises(UserError, match=f"{path.stem}.eeg is truncated"):
        read_recording(path)


def write_set_with_fdt(path, signal, data, **changes):
    chanlocs = np.array([(label,) for label in VI.electrodes], dtype=[("labels", object)])
    empty = dict.fromkeys(("setname", "history"), "") | dict.fromkeys(
        ("event", "epoch", "icawinv", "icaweights", "icasphere"), []
    )
    eeg = {
        "nbchan": 32.0,
        "pnts": float(signal.shape[1]),
        "trials": 1.0,
        "srate": 1000.0,
        "xmin": 0.0,
        "xmax": 4.0,
        "data": data,
    }
    scipy.io.savemat(path, {"EEG": empty | eeg | {"chanlocs": chanlocs} | changes}, appendmat=False)


def test_an_eeglab_file_may_name_data_beside_it_only(eeg, signal):
    path, data = name(eeg, ".set"), signal.T.astype("<f4").tobytes()
    write_set_with_fdt(path, signal, "beside.fdt")
    (eeg / "beside.fdt").write_bytes(data)
    assert np.abs(read_recording(path).signal - signal).max() < 0.01
    (eeg / "beside.fdt").write_bytes(data[:-400])
    with pytest.raises(UserError, match="cannot be read"):
        read_recording(path)
    (eeg.parent / "elsewhere.fdt").write_bytes(data)
    for named in ("../elsewhere.fdt", str(eeg.parent / "elsewhere.fdt")):
        write_set_with_fdt(path, signal, named)
        with pytest.raises(UserError, match=f"{path.name} names the file .*elsewhere.fdt; expected one beside it"):
            read_recording(path)
    for named in ("gone.fdt", "/etc/passwd"):
        write_set_with_fdt(path, signal, named)
        with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
            read_recording(path)


# ---------------------------------------------------------------- files made to take memory or time


def test_an_eeglab_file_is_walked_before_it_is_read(eeg, signal):
    path = name(eeg, ".set")
    cells = struct.pack("<IIIIII", 14, 56, 6, 8, 1, 0) + struct.pack("<IIII", 5, 8, 50_000, 30_000)
    cells += struct.pack("<II8sII", 1, 3, b"EEG", 14, 0)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + cells)
    with pytest.raises(UserError, match="cannot be read as a MATLAB v5 file .1500000000 cells in 8 bytes"):
        read_recording(path)
    write_set(path, signal)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_recording(path)


@pytest.mark.parametrize(
    "changes", [{"pnts": 1e15}, {"pnts": np.nan}, {"srate": 0.0}, {"srate": np.nan}, {"srate": 1e300}]
)
def test_an_eeglab_file_that_declares_nonsense_ends_in_one_line(eeg, signal, changes):
    write_set_with_fdt(name(eeg, ".set"), signal, "x.fdt", **changes)
    (eeg / "x.fdt").write_bytes(signal.T.astype("<f4").tobytes())
    with pytest.raises(UserError, match=name(eeg, ".set").name):
        read_recording(name(eeg, ".set"))


def test_a_fif_file_whose_tags_go_in_a_circle_does_not_hang(eeg, signal, monkeypatch):
    path = name(eeg, ".fif")
    write_fif(path, signal, EVENTS)
    content = bytearray(path.read_bytes())
    pointer = 16 + struct.unpack(">i", content[8:12])[0]  # the second tag says where the list of tags is
    content[pointer + 16 : pointer + 20] = struct.pack(">i", -1)  # nowhere: the tags are followed one by one
    content[pointer + 32 : pointer + 36] = struct.pack(">i", pointer + 20)  # and the third is behind itself
    path.write_bytes(content)
    monkeypatch.setattr(limits, "READING_SECONDS", 0.5)
    with pytest.raises(UserError, match=f"{path.name}: not read after"):
        read_recording(path)


# ---------------------------------------------------------------- from events to trials


def test_labels_are_local_to_a_task_and_codes_that_it_does_not_know_are_left_out(eeg, signal):
    path = eeg / "sub-12_ses-02_task-OVI_eeg.bdf"
    write_bdf(path, signal, [(500, 4), (1500, 5), (2500, 1)])
    (recording,) = recordings(path)
    assert (recording.subject, recording.session, recording.run) == ("S12", "02", 3)
    assert recording.labels.tolist() == [9, 6] and recording.onsets.tolist() == [500, 2500]
    assert recording.numbers.tolist() == [1, 3]  # a trial keeps its number where another is left out
    assert recording.left_out == {("dropped: code that the task does not know", "02 OVI 5"): 1}

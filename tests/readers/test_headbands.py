import gzip

import numpy as np
import pytest

from readers.headbands import GAP_MARK, read_table
from utils.errors import UserError

RATE, SECONDS = 256, 20


def wave(t):
    """(2, N) microvolts of two electrodes at times t."""
    return np.stack([20 * np.sin(2 * np.pi * 7 * t), 10 * np.cos(2 * np.pi * 3 * t)])


def rows(times, taken=None, head="timestamps,TP9,AF7,Right AUX,Marker0", marks=()):
    """Lines of a table: `times` as they are written, samples taken at `taken`."""
    taken = times if taken is None else taken
    lines = [head]
    for k, (t, (a, b)) in enumerate(zip(times, wave(taken).T, strict=True)):
        lines.append(f"{t:.6f},{a:.3f},{b:.3f},0,{dict(marks).get(k, 0)}")
    return "\n".join(lines) + "\n"


def even_times():
    return np.arange(RATE * SECONDS) / RATE


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_gives_microvolts_events_and_no_other_column(tmp_path, packed):
    path = tmp_path / ("run.csv.gz" if packed else "run.csv")
    text = rows(even_times() + 1e5, even_times(), marks=[(256, 1), (512, 2)])
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    raw = read_table(path)
    assert raw.ch_names == ["TP9", "AF7"] and raw.info["sfreq"] == RATE
    assert np.abs(raw.get_data() * 1e6 - wave(raw.times))[:, 5:-5].max() < 0.1
    events = zip(raw.annotations.onset.round(3).tolist(), raw.annotations.description.tolist(), strict=True)
    assert list(events) == [(1.0, "1"), (2.0, "2")]


def test_times_that_come_in_bunches_and_rounded_are_put_right(tmp_path):
    rng, taken = np.random.default_rng(0), even_times()
    arrived = taken[np.minimum((np.arange(len(taken)) // 12 + 1) * 12, len(taken) - 1)]  # twelve samples at once
    arrived = np.maximum.accumulate(arrived + 0.002 * rng.random(len(arrived) // 12 + 1).repeat(12)[: len(arrived)])
    (tmp_path / "run.csv").write_text(rows(arrived, taken))
    raw = read_table(tmp_path / "run.csv")
    data = raw.get_data() * 1e6
    assert raw.info["sfreq"] == RATE and abs(raw.times[-1] - taken[-1]) < 0.1
    lag = max(range(-12, 13), key=lambda k: np.dot(np.roll(data[0], k)[50:4000], wave(raw.times)[0][50:4000]))
    corrected = wave(raw.times + lag / RATE)
    assert np.abs(data - corrected)[:, 100:-100].max() < 3.0  # not the 12-sample steps, which are 20 µV


def test_lost_samples_are_a_gap_that_is_marked_and_what_follows_keeps_its_time(tmp_path):
    keep = np.ones(RATE * SECONDS, bool)
    keep[1000:1300] = False
    (tmp_path / "run.csv").write_text(rows(even_times()[keep], marks=[(1000, 5)]))  # the first sample behind the gap
    raw = read_table(tmp_path / "run.csv")
    marks = {text: (onset, lasts) for onset, lasts, text in zip(
        raw.annotations.onset, raw.annotations.duration, raw.annotations.description, strict=True)}  # fmt: skip
    assert marks[GAP_MARK] == pytest.approx((1000 / RATE, 300 / RATE), abs=0.01)
    assert marks["5"][0] == pytest.approx(1300 / RATE, abs=0.005)
    after = raw.times > 1310 / RATE
    assert np.abs(raw.get_data() * 1e6 - wave(raw.times))[:, after][:, :-5].max() < 0.5


def test_milliseconds_semicolons_and_decimal_commas_are_read(tmp_path):
    lines = rows(even_times() * 1000, even_times(), head="Time;TP9;AF7;Right AUX;Marker0").splitlines()
    text = "\n".join([lines[0], *(line.replace(",", ";").replace(".", ",") for line in lines[1:])])
    (tmp_path / "run.csv").write_text(text)
    raw = read_table(tmp_path / "run.csv")
    assert raw.info["sfreq"] == RATE and np.abs(raw.get_data() * 1e6 - wave(raw.times))[:, 5:-5].max() < 0.1


def test_without_times_the_rate_comes_from_the_head_or_the_flag(tmp_path):
    body = [f"{a:.3f},{b:.3f}" for a, b in wave(even_times()).T]
    (tmp_path / "open.txt").write_text("\n".join(["%OpenBCI", "%Sample Rate = 256 Hz", "Cz,C3", *body]))
    (tmp_path / "bare.csv").write_text("\n".join(["Cz,C3", *body]))
    assert read_table(tmp_path / "open.txt").info["sfreq"] == 256
    assert read_table(tmp_path / "bare.csv", sfreq=256).info["sfreq"] == 256
    with pytest.raises(UserError, match="no column of times; expected one .*or --sfreq"):
        read_table(tmp_path / "bare.csv")


def test_columns_that_only_renaming_makes_electrodes_are_read(tmp_path):
    (tmp_path / "run.csv").write_text(rows(even_times(), head="Timestamp,EXG Channel 0,EXG Channel 1,Other,Marker"))
    with pytest.raises(UserError, match="--rename 'EXG Channel 0=Cz' says which one is"):
        read_table(tmp_path / "run.csv")
    raw = read_table(tmp_path / "run.csv", renamed={"EXG Channel 1": "Cz"})
    assert raw.ch_names == ["EXG Channel 1"]


def test_what_is_no_table_of_samples_ends_in_one_line(tmp_path):
    path = tmp_path / "run.csv"
    for text, message in [
        ("", "is empty"),
        ("timestamps,TP9\n1,2\n", "1 whole rows|0 whole rows"),
        (rows(even_times(), head="timestamps,a,b,c,d"), "none is named as an electrode"),
        (rows(np.arange(100) * 1.0 + 1.6e9), "rows a second; expected the raw samples"),
        (rows(np.concatenate([even_times(), even_times()])), "its times go back at row"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_table(path)
    path.write_bytes(gzip.compress(b"0" * 500_000_000, 9))
    with pytest.raises(UserError, match="unpacks to more than"):
        read_table(path)

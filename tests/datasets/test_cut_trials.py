from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasets.prepare import RATIOS, compare_electrodes, cut_trials
from datasets.preprocessing import Preprocessing, filter_run
from datasets.recording import Recording
from datasets.visual_imagery_llm_dataset import MONTAGE as VI
from utils.errors import UserError

SETTINGS = Preprocessing(0.5, 4.5)


@pytest.fixture
def recording():
    """Twenty seconds of 20 µV noise on 32 electrodes, two trials."""
    rng = np.random.default_rng(0)
    signal = 20 * rng.standard_normal((32, 20 * 250)) + 10 * rng.standard_normal(20 * 250)
    return Recording(signal, 250.0, np.array([1000, 2500]), np.array([0, 1]), "S01", "01")


def cut(recording, scale=None, settings=SETTINGS):
    return cut_trials(recording, Path("a.bdf"), settings, scale, Counter(), VI.electrodes)


@pytest.mark.parametrize("reference", ["average", "none"])
@pytest.mark.parametrize("factor", [256, 1000, 1e6, 1e9, 1 / 256, 1 / 1000])
def test_one_electrode_in_another_unit_is_named(recording, factor, reference):
    recording.signal[VI.electrodes.index("Oz")] *= factor
    with pytest.raises(
        UserError, match=r"a.bdf: .* Oz is [\d.e+-]+ times the median; expected .* --scale 1 goes on"
    ) as error:
        cut(recording, settings=replace(SETTINGS, reference=reference))
    found = float(str(error.value).split("Oz is ")[1].split()[0])
    assert factor / 1.5 < found < factor * 1.5


def test_several_are_named_and_scale_1_goes_on(recording):
    recording.signal[[3, 7]] *= 1000
    with pytest.raises(UserError, match="Fz is .*, F8 is .* times the median"):
        cut(recording)
    kept, _ = cut(recording, scale=1.0)
    assert len(kept) == 2


@pytest.mark.parametrize("factor", [0.05, 30])
def test_bad_electrodes_are_normal(recording, factor):
    recording.signal[5] *= factor
    assert len(cut(recording)[0]) == 2 and "flat_electrodes" not in recording.notes


def test_electrodes_that_never_change_are_noted(recording, capsys):
    recording.signal[[2, 30]] = [[0.0], [-70.5]]
    kept, _ = cut(recording)
    assert len(kept) == 2 and recording.notes["flat_electrodes"] == ["Fp2", "O1"]
    assert "notice: a.bdf: Fp2, O1 never change" in capsys.readouterr().out


def test_a_recording_of_flat_electrodes_is_refused(recording):
    recording.signal[:] = 3.0
    with pytest.raises(UserError, match="median electrode's standard deviation"):
        cut(recording)


def test_all_in_another_unit_is_said_of_the_median(recording):
    recording.signal *= 1000
    with pytest.raises(UserError, match="median electrode's standard deviation"):
        cut(recording)


def test_real_electrodes_are_far_from_the_limits(shared):
    """All people and recordings that are at hand: 0.57 to 2.2."""
    from datasets.description import load_description

    found = []
    for name, folder in (("BCICIV2a", "bciciv2a_raw"), ("BCICIV2b", "bciciv2b_raw"), ("VI", "visual_imagery_raw")):
        description = load_description(name)
        settings = Preprocessing(0, 4, description.reference)
        for path in description.files(shared / "real" / folder)[:4]:
            for recording in description.recordings(path):
                if len(recording.onsets):
                    filtered = filter_run(recording.signal, recording.sfreq, settings)
                    flat, ratios = compare_electrodes(recording.signal, filtered, recording.sfreq, settings)
                    assert not flat.any()
                    found += ratios.tolist()
    assert 3 * RATIOS[0] < min(found) and max(found) < RATIOS[1] / 3

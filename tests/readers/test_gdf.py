"""GDF files: both versions, units, gaps, and what is wrong with them."""

import numpy as np
import pytest

from readers.gdf import check_gdf, read_gdf
from tests.copies import write_gdf
from utils.errors import UserError

EVENTS = [(0, 32766), (250, 768), (750, 769)]


@pytest.fixture
def signal():
    return 10 * np.random.default_rng(0).standard_normal((5, 2500))


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_give_microvolts_within_a_step_and_events_from_0(tmp_path, signal, version):
    file = read_gdf(write_gdf(tmp_path / "a.gdf", signal, EVENTS, version=version), range(3))
    assert file.sfreq == 250 and file.signal.shape == (3, 2500) and file.events == EVENTS and not file.gaps.any()
    assert np.abs(file.signal - signal[:3]).max() <= 0.05 + 1e-6 and not file.corrections


@pytest.mark.parametrize(
    "version, unit, factor",
    [(2, 4274, 1e3), (2, 4276, 1e-3), (2, 0, 1), (1, b"mV", 1e3), (1, b"", 1), (1, b"\xb5V", 1)],
)
def test_units_that_mne_takes_for_volts_are_put_right(tmp_path, signal, version, unit, factor):
    file = read_gdf(write_gdf(tmp_path / "a.gdf", signal, EVENTS, version=version, unit=unit), range(3))
    assert np.allclose(file.signal, factor * np.round(signal[:3], 1), atol=0.01 * factor)
    assert bool(file.corrections) == (unit in (0, b""))


def test_a_gap_is_where_all_channels_are_at_the_lower_end(tmp_path, signal):
    signal[:, 500:600] = np.nan
    signal[1, 700] = np.nan  # one channel alone is no gap
    file = read_gdf(write_gdf(tmp_path / "a.gdf", signal, EVENTS), range(5))
    assert np.flatnonzero(file.gaps).tolist() == list(range(500, 600))


@pytest.mark.parametrize("keep", [0, 5, 255, 600, 0.5, 0.9, 0.9995])
@pytest.mark.parametrize("version", [1, 2])
def test_a_truncated_file_is_named(tmp_path, signal, keep, version):
    path = write_gdf(tmp_path / "a.gdf", signal, EVENTS, version=version)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(UserError, match="a.gdf"):
        read_gdf(path, range(3))


def test_what_cannot_be_right_is_refused(tmp_path, signal):
    with pytest.raises(UserError, match="truncated"):
        check_gdf(write_gdf(tmp_path / "a.gdf", signal, EVENTS, n_records=10**6))
    with pytest.raises(UserError, match="limits"):
        check_gdf(write_gdf(tmp_path / "b.gdf", signal, EVENTS, step=0.0, n_records=1))
    with pytest.raises(UserError, match="unit 6048"):
        read_gdf(write_gdf(tmp_path / "d.gdf", signal, EVENTS, unit=6048), range(3))
    (tmp_path / "f.gdf").write_text("<html>404</html>" * 50)
    with pytest.raises(UserError, match="f.gdf: its header is damaged"):
        read_gdf(tmp_path / "f.gdf", range(3))

import pytest

from readers.electrode_names import electrodes_of, standard_name
from utils.errors import UserError


@pytest.mark.parametrize(
    "text, name, reference",
    [
        ("Fp1", "Fp1", ""), ("FP1", "Fp1", ""), ("cz", "Cz", ""), ("Fc5.", "FC5", ""), ("FP1..", "Fp1", ""),
        ("EEG Fp1-Ref", "Fp1", ""), ("FP1-LE", "Fp1", ""), ("EEG Fp1-CPz", "Fp1", "CPz"), ("EEG:C3", "C3", ""),
        ("T3", "T7", ""), ("EEG T5-A2", "P7", "A2"), ("RAW_TP9", "TP9", ""), ("CPz", "CPz", ""), ("AFF1h", "AFF1h", ""),
        ("HEOG", None, ""), ("A1", None, ""), ("EEG 001", None, ""), ("Fp1-F3", None, ""), ("Status", None, ""),
    ],
)  # fmt: skip
def test_names_of_many_recorders_are_understood(text, name, reference):
    assert standard_name(text) == (name, reference)


def test_the_channel_that_is_named_so_is_the_electrode_and_order_is_the_files():
    found, notes = electrodes_of(["EEG Pz-Ref", "T3", "T7", "EOG", "Cz"])
    assert found == {"Pz": "EEG Pz-Ref", "T7": "T7", "Cz": "Cz"} and "EEG Pz-Ref is Pz" in notes[0]
    assert electrodes_of(["x", "C3"], {"x": "C4"})[0] == {"C4": "x", "C3": "C3"}


def test_two_channels_that_mean_one_electrode_are_an_error_and_renaming_tells_them_apart():
    with pytest.raises(UserError, match="both mean electrode Cz; --rename"):
        electrodes_of(["EEG Cz-Ref", "CZ."])
    assert electrodes_of(["EEG Cz-Ref", "CZ."], {"CZ.": "Pz"})[0] == {"Cz": "EEG Cz-Ref", "Pz": "CZ."}

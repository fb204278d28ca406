"""Electrodes as recorders name them → names of the 10-20, 10-10 and 10-5 systems."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from utils.errors import UserError, some

# names of the first 10-20 system → today's (American Clinical Neurophysiology Society, guideline 2, 2006)
OLD = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
# what stands before a name in some recorders' files; and behind it, the reference or the end of a padded field
BEFORE = re.compile(r"^(?:EEG|RAW|POL|CHAN(?:NEL)?)[\s:_.-]+", re.IGNORECASE)
REFERENCE = re.compile(
    r"[\s:_-]+\(?(REF|LE|RE|LER|A1|A2|A1A2|A1\+A2|AA|M1|M2|M1M2|AVG?|AVE|AR|CAR|CPZ|FCZ|CZ|FPZ|PZ|FZ|OZ|NZ|G\d?|GND)"
    r"\)?$",
    re.IGNORECASE,
)
NO_REFERENCE = ("REF", "LE", "RE", "LER")  # say that there is one, and not which electrode it is
# what sits on the head, or beside it, and is no EEG electrode; mastoids and ear lobes are references
OTHERS = re.compile(
    r"(?i)(.*(EOG|EMG|ECG|EKG|GSR|EDA|ACC|GYR|RESP|TEMP|TRIG|STATUS|STIM?\b|STI ?\d|MARK|EVENT|PPG|SPO2|PULSE|SAW|"
    r"PHOTO|BATT|COUNTER|QUALITY|MISC).*|A1|A2|M1|M2|LOC|ROC|[XYZ]|AUX.*|R(IGHT)?[ _]?AUX|BIP\d*|EXG?\d+|DC\d+|GND|REF)"
)


@lru_cache(maxsize=1)
def _known() -> dict[str, str]:
    """Upper case → name, of all places of the 10-5 system that MNE has."""
    import mne  # slow to import

    names = mne.channels.make_standard_montage("standard_1005").ch_names
    return {name.upper(): name for name in names if not OTHERS.fullmatch(name)}


def standard_core(text: str) -> str:
    """A channel's name without what some recorders put before and behind it."""
    return BEFORE.sub("", text.strip().strip(".").strip())


def standard_name(text: str) -> tuple[str | None, str]:
    """The electrode that a recorder's name means (None: unknown), and the reference that it names (empty: none).

    "EEG Fp1-Ref" → Fp1, "FP1." → Fp1, "T3" → T7, "Fp1-CPz" → (Fp1, CPz), "RAW_TP9" → TP9.
    """
    name = standard_core(text)
    reference = REFERENCE.search(name)
    if name.upper() not in _known() and reference:
        name = name[: reference.start()].strip().strip(".")
    else:
        reference = None
    found = _known().get(OLD.get(name.upper(), name.upper()))
    said = reference[1] if reference and reference[1].upper() not in NO_REFERENCE else ""
    return found, said


def numbered_cap(channels: Sequence[str]) -> list[str]:
    """The channels of a cap whose electrodes are called A1, A2, … B1, … (BioSemi's); empty where there is none.

    Such a cap's C3 and F5 are not those of the 10-20 system, and its A1 and A2 are no ear lobes. One with A3 to A16 is
    taken for it: nothing else is called so.
    """
    cap = [channel for channel in channels if re.fullmatch(r"[A-H]\d{1,2}", channel.strip())]
    return cap if {f"A{k}" for k in range(3, 17)} <= set(map(str.strip, cap)) else []


def electrodes_of(
    channels: Sequence[str], renamed: Mapping[str, str] | None = None, where: str = ""
) -> tuple[dict[str, str], list[str]]:
    """The electrodes among a recording's channels: {standard name: channel}, and in words what was understood.

    renamed : mapping, optional. --rename: a channel's name → the electrode that it is, any name.
    Where two channels mean one electrode, the one that is named so exactly is it; UserError where neither is.
    """
    renamed, notes = renamed or {}, []
    meant = {}  # channel → (electrode, how sure: 0 asked for, 1 named so, 2 understood)
    references = Counter()
    for channel in channels:
        if channel in renamed:
            meant[channel] = (renamed[channel], 0)
            continue
        name, reference = standard_name(channel)
        if name is None or OTHERS.fullmatch(channel.strip()):
            continue
        meant[channel] = (name, 1 if channel.upper() == name.upper() else 2)
        references[reference] += 1
    found: dict[str, str] = {}
    for channel, (name, sure) in sorted(meant.items(), key=lambda one: one[1][1]):
        if name not in found:
            found[name] = channel
        elif sure == 0 or meant[found[name]][1] == sure:
            raise UserError(f"{where}: {found[name]} and {channel} both mean electrode {name}; --rename says which")
    order = {channel: k for k, channel in enumerate(channels)}
    found = dict(sorted(found.items(), key=lambda one: order[one[1]]))
    odd = [f"{channel} is {name}" for name, channel in found.items() if channel.upper() != name.upper()]
    if odd:
        notes.append(f"electrodes understood: {some(odd, 4)}")
    named = sorted(set(references) - {""})
    if named:
        notes.append(f"recorded against {', '.join(named)}, as the names say")
    return found, notes

"""Visual Imagery's files by their names, and people whom the published set does not have."""

from collections import Counter

from datasets.visual_imagery_llm_dataset import SUBJECTS, closing, files


def test_own_people_are_found_and_counted_in_no_published_split(tmp_path):
    for person, session in (("01", "01"), ("23", "01"), ("23", "02")):
        folder = tmp_path / f"any/sub-{person}/ses-{session}/eeg"
        folder.mkdir(parents=True)
        (folder / f"sub-{person}_ses-{session}_task-AVI_eeg.bdf").write_bytes(b"x")
    assert [path.name[:13] for path in files(tmp_path)] == ["sub-01_ses-01", "sub-23_ses-01", "sub-23_ses-02"]
    assert [path.name[:6] for path in files(tmp_path, ["S23"])] == ["sub-23"] * 2
    recording = {"subject": "S23", "session": "01", "task": "AVI", "corrections": [], "events_from": ["Status"]}
    source = {"name": "x.bdf", "recordings": [recording | {"median_sd_microvolts": 10.0}]}
    expected, lines = closing({"subjects": [*SUBJECTS, "S23"]}, [source], Counter())
    assert expected["expected"] == {"train": 0, "val": 0, "test": 0}
    assert "missing: S23 session 01, FVI, OVI" in lines and not any("S23 has session" in line for line in lines)

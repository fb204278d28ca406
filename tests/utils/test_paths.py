import pytest

from utils.paths import written_whole


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path):
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(RuntimeError), written_whole(tmp_path / "results.json") as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert (tmp_path / "results.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_files_and_folders_are_replaced_whole(tmp_path):
    for text in ("first", "second"):
        with written_whole(tmp_path / "deep/folder") as unfinished:
            unfinished.mkdir()
            (unfinished / text).write_text(text)
        with written_whole(tmp_path / "deep/file") as unfinished:
            unfinished.write_text(text)
    assert [p.name for p in (tmp_path / "deep/folder").iterdir()] == ["second"]
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["file", "folder"]

"""osf.io's list of a project's files, from a server that answers like it."""

import pytest
import requests

from utils import osf
from utils.errors import UserError

BASE = "https://api.osf.io/v2/nodes/anp5v/files/osfstorage/"


def file(name, size=3, md5="0" * 32):
    return {
        "attributes": {"name": name, "kind": "file", "size": size, "extra": {"hashes": {"md5": md5}}},
        "links": {"download": f"https://osf.io/download/{name}"},
    }


def folder(name, href):
    return {
        "attributes": {"name": name, "kind": "folder"},
        "relationships": {"files": {"links": {"related": {"href": href}}}},
    }


@pytest.fixture
def server(monkeypatch):
    pages = {}

    class Answer:
        def __init__(self, content):
            self.content = content

        def raise_for_status(self):
            if self.content is None:
                raise requests.HTTPError("404")

        def json(self):
            return self.content

    monkeypatch.setattr(requests, "get", lambda url, timeout: Answer(pages.get(url)))
    return pages


def test_files_are_listed_folder_by_folder_and_page_by_page(server):
    server[BASE] = {"data": [folder("raw", BASE + "raw/"), file("readme.txt")], "links": {"next": BASE + "?page=2"}}
    server[BASE + "?page=2"] = {"data": [file("b.zip", 7)], "links": {"next": None}}
    server[BASE + "raw/"] = {"data": [file("sub-01.zip")], "links": {"next": None}}
    found = osf.list_files("anp5v")
    assert {f.path: f.size for f in found} == {"readme.txt": 3, "b.zip": 7, "raw/sub-01.zip": 3}
    assert found[0].md5 == "0" * 32 and found[0].url == "https://osf.io/download/readme.txt"


@pytest.mark.parametrize("content", [None, {"data": [{"attributes": {}}]}, {"data": [folder("x",
    "https://elsewhere.org/")]}, {"data": [folder("x", BASE)]}, []],
                         ids=["404", "keys", "another host", "a circle", "a list"])  # fmt: skip
def test_a_list_that_cannot_be_had_says_what_to_do(server, content):
    server[BASE] = content
    with pytest.raises(UserError, match="fetch the files by hand"):
        osf.list_files("anp5v")


def test_a_persons_files_and_the_images_go_to_their_places(server, script, monkeypatch, tmp_path):
    """What is fetched, and where it goes; the download itself is tested elsewhere."""
    images = BASE.replace("anp5v", "jum2f")
    server[BASE] = {"data": [file("sub-01.zip"), file("sub-02.zip"), file("notes.pdf")]}
    server[images] = {"data": [file("image_metadata.npy"), file("training_images.zip")]}
    fetched, unpacked = [], []
    monkeypatch.setattr(
        "utils.download.download",
        lambda urls, path, md5=None: fetched.append((path.relative_to(tmp_path).as_posix(), md5)),
    )
    monkeypatch.setattr("utils.archives.unpack", lambda path, destination, scratch: unpacked.append(path.name) or 1)
    done = script(
        "prepare_data_things.py", "--raw_dir", tmp_path / "raw", "--lmdb_dir", tmp_path / "store", "--subjects", 1
    )
    assert [path for path, _ in fetched] == [
        "raw/sub-01.zip",
        "images/image_metadata.npy",
        "images/training_images.zip",
    ]
    assert unpacked == ["sub-01.zip", "training_images.zip"] and done.code == 2  # nothing came

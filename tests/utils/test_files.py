"""What is no plain file is not read: a FIFO would be waited for, a file that never ends would fill the memory."""

import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from models.loading import building, load_tokenizer
from readers.recordings import table_rows
from stages.rows import read_rows
from utils.archives import check_packed
from utils.checkpoints import keep, read_kept
from utils.errors import Fault, UserError, loading
from utils.files import plain_bytes, read_csv, read_json
from utils.limits import MAX_TEMPLATE, opened_picture
from utils.paths import append
from utils.script import run_script


@contextmanager
def ends_within(seconds):
    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def opened(path):
    with opened_picture(path):
        pass


def built(path):
    with loading("--llm", "name another"), building("--llm", path.parent):
        pass


READERS = {
    "bytes": lambda path: plain_bytes(path, 100),
    "a table of events": table_rows,
    "decoded trials": read_rows,
    "packed trials": lambda path: read_rows(path.rename(path.with_suffix(".gz"))),
    "a picture": opened,
    "a file that grows": lambda path: append(path, b"line"),
    "a model's folder": built,
}


@pytest.mark.parametrize("name", READERS)
def test_a_fifo_is_refused_in_a_line(tmp_path, name):
    path = tmp_path / "file"
    os.mkfifo(path)
    with ends_within(20), pytest.raises((UserError, OSError), match="plain file|No such device"):
        READERS[name](path)


@pytest.mark.parametrize("read", [read_json, read_csv, table_rows])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, read):
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 3 << 30)  # takes no place on the disk
    with pytest.raises(UserError, match="has 3221225472 bytes; such a file has at most"):
        read(path)


def test_parts_of_a_checkpoint_are_compared_with_their_sums_whatever_stands_behind_it(tmp_path):
    """zipfile does not see a zip file where bytes stand behind it that look like an end; torch does."""
    path = tmp_path / "run.pth"
    torch.save({"x": torch.arange(1000.0)}, path)
    check_packed(path)
    content = bytearray(path.read_bytes())
    place = content.find(np.arange(1000, dtype="<f4").tobytes()) + 401
    content[place] ^= 1
    path.write_bytes(bytes(content) + b"PK\5\6")
    assert not torch.equal(torch.load(path, weights_only=True)["x"], torch.arange(1000.0))
    with pytest.raises(UserError), loading(str(path), "fetch it again"):
        check_packed(path)


def test_kept_tensors_of_the_smallest_numbers_are_made_anew(tmp_path):
    path = tmp_path / "tokens.safetensors"
    keep({"x": torch.ones(4).to(torch.float8_e4m3fn)}, path)
    assert path.is_file() and read_kept(path) is None


def test_folders_that_lie_too_deep_end_in_a_line(capsys):
    def deeper():
        return deeper()

    with pytest.raises(SystemExit) as stop:
        run_script(deeper)
    assert stop.value.code == 2 and "too deep" in capsys.readouterr().err


def test_what_a_tokenizer_puts_around_a_text_is_bounded(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"post_processor": {"single": "%s"}}' % ("a" * MAX_TEMPLATE))
    with pytest.raises((ValueError, Fault), match="around a text"):
        load_tokenizer(str(tmp_path))

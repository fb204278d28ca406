import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from utils import limits
from utils.errors import UserError, loading
from utils.limits import bounded, check_pixels, check_plain, guarded, reading


def loop():
    while True:
        pass


def state():
    return (
        signal.getsignal(signal.SIGALRM),
        signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        resource.getrlimit(resource.RLIMIT_AS),
    )


def test_time_is_kept_and_nothing_is_left_behind():
    before = state()
    with pytest.raises(UserError, match="a.fif: not read after 0 s"), bounded("a.fif", 0.1):
        loop()
    with bounded("a.fif", 60, 1 << 30):
        assert state() != before
    assert state() == before
    with pytest.raises(ZeroDivisionError), bounded("a.fif", 60, 1 << 30):
        1 / 0  # noqa: B018
    assert state() == before


def test_a_library_that_catches_every_error_does_not_go_on_for_ever():
    def stubborn():
        for _ in range(2):
            try:
                loop()
            except Exception:
                continue

    with pytest.raises(UserError, match="not read after"), bounded("a.set", 0.1):
        stubborn()


def test_one_that_catches_even_more_is_ended_a_second_later():
    caught = []

    def stubborn():
        try:
            loop()
        except BaseException as error:
            caught.append(error)
        loop()

    with pytest.raises(UserError, match="not read after"), bounded("a.set", 0.1):
        stubborn()
    assert len(caught) == 1


def test_the_line_stays_one_line_inside_another_wrapper():
    with (
        pytest.raises(UserError, match="cannot be loaded .*not done after"),
        bounded("a", 0.1),
        loading("--x a", "do b"),
    ):
        loop()


def test_a_block_inside_another_gives_its_time_back():
    with pytest.raises(UserError, match="outer: not read"), bounded("outer", 0.5):
        with pytest.raises(UserError, match="inner: not read"), bounded("inner", 0.1):
            loop()
        loop()


def test_memory_is_not_given_beyond_what_is_allowed():
    with pytest.raises(UserError, match="a.mat: asks for more memory"), bounded("a.mat", 60, 64 << 20):
        bytearray(1 << 30)
    assert len(bytearray(100 << 20)) == 100 << 20
    with bounded("a.mat", 60, 512 << 20):
        bytearray(100 << 20)


def test_a_limit_that_the_shell_has_set_is_not_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (own, hard))
    try:
        with bounded("a.mat", 60, 1 << 40):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] == own
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_beside_the_main_thread_the_work_is_done_without_a_clock():
    done = []

    def work():
        with bounded("a.fif", 0.01):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_the_time_for_a_recording_grows_with_its_files_and_the_memory_with_its_content(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(limits, "bounded", lambda *args: seen.append(args) or bounded("x", 60))
    with reading(tmp_path / "a.mat", 10 * limits.READING_RATE, 1 << 20):
        pass
    assert seen == [(str(tmp_path / "a.mat"), limits.READING_SECONDS + 10, (4 << 20) + limits.READING_BYTES)]


@pytest.mark.parametrize(
    "size, fine",
    [
        ((8000, 6000), True),
        ((20_000, 2500), True),
        ((2_000, 10), False),
        ((20_001, 1000), False),
        ((1, 150_000), False),
        ((17_000, 10_000), False),
    ],
)
def test_pictures_are_limited_by_their_pixels(size, fine):
    if fine:
        check_pixels(Path("a.png"), size)
    else:
        with pytest.raises(UserError, match=f"a.png has {size[0]} × {size[1]} pixels; at most 50 million are read"):
            check_pixels(Path("a.png"), size)


def nested(levels, inside=()):
    content = list(inside)
    for _ in range(levels):
        content = [content, content]
    return content


def in_array(content):
    array = np.empty(1, object)  # np.array would write it out
    array[0] = content
    return array


def itself():
    content = {"a": []}
    content["a"].append(content)
    return content


def deep(levels):
    content = []
    for _ in range(levels):
        content = [content]
    return content


@pytest.mark.parametrize("content, words", [
    (nested(28), "over and over"), (in_array(nested(28)), "over and over"), (itself(), "hold themselves"),
    (deep(5000), "nested too deep"), ({"x": [object()]}, "a object is no data"), ({(1, object()): 1}, "no data"),
])  # fmt: skip
def test_what_is_made_to_last_is_refused_before_anybody_writes_it_out(content, words):
    begun = time.monotonic()
    with pytest.raises(ValueError, match=words):
        check_plain(content, (str, int), 1000)
    assert time.monotonic() - begun < 5


def test_plain_content_passes_with_lists_that_stand_there_twice(monkeypatch):
    names = ["Fp1", "Fp2"] * 30
    check_plain({"ch_names": names, "again": (names, names), "x": np.zeros((3, 2)), "n": 1}, (str, int, np.ndarray), 10)
    monkeypatch.setattr(limits, "MAX_VALUES", 1000)
    check_plain([[k] for k in range(400)], (int,), 10)
    with pytest.raises(ValueError, match="over and over"):
        check_plain([[k] for k in range(600)], (int,), 10)
    check_plain([[k] for k in range(600)], (int,), 5000)  # a file of as many bytes may hold them


@pytest.mark.parametrize("error", [TypeError("x"), MemoryError(), RecursionError(), OverflowError("int too large")])
def test_the_guard_names_the_file_whatever_goes_wrong_inside(tmp_path, error):
    with pytest.raises(UserError, match="a.npy: .*again|a.npy: asks for more memory"), guarded(tmp_path / "a.npy"):
        raise error

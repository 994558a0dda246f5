import errno
import gc
import multiprocessing
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minseg.files import kept
from minseg.files.kept import once


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(kept, "_kept", None)


def made(calls, value):
    calls.append(value)
    return value


@pytest.mark.filterwarnings("error::RuntimeWarning")  # Python warns of a buffer
def test_each_value_is_made_once():
    calls = []
    for _ in range(3):
        for key in ("a", "b", ("a", 1)):
            assert once(key, lambda key=key: made(calls, [key])) == [key]
    assert calls == [["a"], ["b"], [("a", 1)]]


def test_who_changes_a_value_changes_only_a_copy():
    for _ in range(2):
        value = once("a", lambda: np.zeros(9))
        assert not value.any()
        value[:] = 1


def test_memory_does_not_grow_with_the_number_of_values():
    tracemalloc.start()
    try:
        for i in range(50):
            assert once(i, lambda i=i: np.full(2**20, i % 256, np.uint8))[-1] == i
        assert all(once(i, AssertionError)[-1] == i for i in range(50))
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()


def test_threads_may_share_what_is_kept():
    def check(i):
        key = i % 5
        value = once(key, lambda: np.full(10_000, key))
        assert (value == key).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(200)))


def answer(key, queue):
    queue.put([once(key, lambda: "made there"), once("new", lambda: "made there")])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_process_does_not_disturb_its_parent():
    assert once("a", lambda: "made here") == "made here"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=answer, args=("a", queue))
    process.start()
    assert queue.get(timeout=60) == ["made there"] * 2
    process.join()
    assert once("a", AssertionError) == "made here"
    assert once("new", lambda: "made here") == "made here"


def test_on_a_full_disk_values_are_made_again(monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    calls = []
    monkeypatch.setattr(kept.Kept, "save", full)
    assert [once("a", lambda: made(calls, 1)) for _ in range(3)] == [1, 1, 1] == calls


def test_a_value_that_was_written_in_part_is_made_again(monkeypatch):
    class Full:
        def __init__(self, file):
            self.file, self.seek, self.read = file, file.seek, file.read

        def write(self, data):
            return self.file.write(data[:5])

    once("a", lambda: "kept")
    whole, kept._kept.file = kept._kept.file, Full(kept._kept.file)
    assert once("b", lambda: "b") == "b" and once("b", lambda: "again") == "again"
    kept._kept.file = whole
    assert once("b", lambda: "third") == "third" == once("b", AssertionError)
    assert once("a", AssertionError) == "kept"


def test_without_a_folder_for_scratch_files_values_are_made_again(monkeypatch):
    def missing(buffering):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(kept, "scratch_file", missing)
    assert [once("a", lambda i=i: i) for i in range(3)] == [0, 1, 2]


def test_an_error_is_not_kept_and_the_search_for_circles_goes_on():
    def fail():
        assert not gc.isenabled()
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            once("a", fail)
        assert gc.isenabled()
    assert once("a", lambda: 1) == 1


def test_nothing_is_kept_beyond_the_limit():
    once("a", lambda: 1)
    size = kept._kept.file.seek(0, 2)
    for limit, second in ((size + 50, 1), (size + 200, 0)):
        assert once("b", lambda: bytes(100) + b"0", limit)[-1:] == b"0"
        assert once("b", lambda: bytes(100) + b"1", limit)[-1:] == str(second).encode()

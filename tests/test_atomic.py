"""Files appear whole or not at all, leftovers of dead processes are deleted, and a file that has
changed is not taken for what it was."""

import errno
import hashlib
import multiprocessing
import os
import random
import shutil

import pytest

from minseg.files import atomic as files
from minseg.files.atomic import atomic, content, is_same

NAMES = ["a.json", "a.b.tiff", "plain", "a [1].txt", "*.txt", "a?.txt", "[!a].txt", "ä ö.csv"]
no_locks = pytest.mark.skipif(os.name != "posix", reason="there are no such locks")


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def left_for(path, token="0123456789abcdef"):
    """The temporary file that a killed program left when it wrote `path`."""
    left = path.with_name(f".{path.stem}.{token}{path.suffix}")
    left.write_bytes(b"half")
    return left


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_appears_only_at_the_end(tmp_path, name, old):
    path = tmp_path / name
    if old:
        path.write_bytes(old)
    with atomic(path) as temporary:
        temporary.write_bytes(b"half")
        assert path.read_bytes() == old if old else not path.exists()
        assert temporary.parent == path.parent  # a move within a disk is one step
        assert temporary.name.startswith(".") and temporary.name.endswith(path.suffix)
        temporary.write_bytes(b"the whole")
        assert path.read_bytes() == old if old else not path.exists()
    assert listed(tmp_path) == [name] and path.read_bytes() == b"the whole"


def test_a_path_may_be_a_string_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic("a.txt") as temporary:
        temporary.write_text("a")
    assert listed(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("old", [None, b"old"])
def test_if_the_block_fails_only_the_old_file_is_left(tmp_path, name, old, error):
    path = tmp_path / name
    if old:
        path.write_bytes(old)
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert listed(tmp_path) == ([name] if old else [])
    assert not old or path.read_bytes() == old


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_if_the_disk_fails_only_the_old_file_is_left(tmp_path, monkeypatch, step):
    def fail(*arguments):
        raise OSError(5, "the disk is gone")

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="the disk is gone"), atomic(path) as temporary:
        temporary.write_text("new")
    assert listed(tmp_path) == ["a.txt"] and path.read_text() == "old"


def test_a_block_that_writes_nothing_gives_an_empty_file(tmp_path):
    with atomic(tmp_path / "a.tiles"):
        pass
    assert listed(tmp_path) == ["a.tiles"] and not (tmp_path / "a.tiles").stat().st_size


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_that_any_other_new_file_has(tmp_path):
    (tmp_path / "usual").write_text("")
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    steps, sync, move = [], os.fsync, os.replace

    def fsync(file):
        steps.append(os.fstat(file).st_size)
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("move") or move(*paths))
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_bytes(b"12345")
    assert steps == [5, "move"]


def test_writing_two_files_may_be_nested(tmp_path):
    with atomic(tmp_path / "a.txt") as outer:
        outer.write_text("a")
        with atomic(tmp_path / "a.csv") as inner:
            inner.write_text("b")
        assert outer != inner and outer.exists()
    assert (tmp_path / "a.txt").read_text() + (tmp_path / "a.csv").read_text() == "ab"


@no_locks
@pytest.mark.parametrize("name", NAMES)
def test_leftovers_of_a_dead_process_are_deleted_before_the_file_is_written(tmp_path, name):
    path = tmp_path / name
    left = left_for(path)
    with atomic(path) as temporary:
        assert not left.exists()
        temporary.write_bytes(b"new")
    assert listed(tmp_path) == [name]


@no_locks
def test_a_killed_program_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def killed_while_writing():
        with atomic(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), 9)

    process = multiprocessing.get_context("fork").Process(target=killed_while_writing)
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert path.read_text() == "old" and len(listed(tmp_path)) == 2
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert listed(tmp_path) == ["a.txt"] and path.read_text() == "new"


@no_locks
def test_the_file_of_a_program_that_is_still_writing_is_kept(tmp_path):
    # Whatever its process number and the name of its host: in two containers both may be the same.
    path = tmp_path / "a.txt"
    with atomic(path) as slow:
        slow.write_text("slow")
        with atomic(path) as fast:
            assert slow.exists() and slow != fast
            fast.write_text("fast")
        assert path.read_text() == "fast" and slow.read_text() == "slow"
    assert listed(tmp_path) == ["a.txt"] and path.read_text() == "slow"


@pytest.mark.parametrize("name", NAMES)
def test_files_of_other_names_are_kept(tmp_path, name):
    path = tmp_path / name
    other = path.with_name(f"{path.stem}2{path.suffix}")
    kept = [left_for(other), left_for(path.with_name("x" + name)), left_for(path, "note"),
            left_for(path, "0123456789abcdeg"), left_for(path, ""),
            left_for(path.with_name(f"{path.stem}.other"))]
    visible = left_for(path, "0" * 16)
    kept.append(visible.rename(visible.with_name(visible.name[1:])))
    for text in b"1", b"2":
        with atomic(path) as temporary:
            temporary.write_bytes(text)
        assert listed(tmp_path) == sorted([name, *(file.name for file in kept)])
        assert path.read_bytes() == text


def test_wildcards_in_a_name_do_not_match_other_files(tmp_path):
    for name, other in (("*.txt", "b.txt"), ("a?.txt", "ab.txt"), ("[!a].txt", "b.txt")):
        kept = left_for(tmp_path / other)
        with atomic(tmp_path / name) as temporary:
            temporary.write_bytes(b"new")
        assert kept.exists()


@no_locks
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_there_are_no_locks_nothing_is_deleted_and_writing_works(
        tmp_path, monkeypatch, number):
    def no_lock(*arguments):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", no_lock)
    left = left_for(tmp_path / "a.txt")
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert listed(tmp_path) == sorted(["a.txt", left.name])


def test_another_program_may_be_first_to_delete_the_leftovers(tmp_path, monkeypatch):
    left = left_for(tmp_path / "a.txt")

    def second(file):
        left.unlink(missing_ok=True)
        return True

    monkeypatch.setattr(files, "lock", second)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert listed(tmp_path) == ["a.txt"]


def test_the_error_for_a_full_disk_names_the_file(tmp_path):
    with (pytest.raises(OSError, match="No space left.*mask.tif"),
          atomic(tmp_path / "mask.tif") as temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 10, 2**16, 16 * 2**16, 5_000_000])
def test_a_copy_is_the_same_at_any_place_and_time_and_each_changed_byte_is_noticed(tmp_path, size):
    path = tmp_path / "a"
    path.write_bytes(bytes(size))
    noted = content(path)
    assert noted["bytes"] == size and is_same(path, noted)
    copy = shutil.copyfile(path, tmp_path / "b")
    os.utime(copy, ns=(1, 1))
    assert is_same(copy, noted)
    for place in {0, size // 2, size // 30, size - 1} if size else ():
        changed = bytearray(size)
        changed[place] = 1
        copy.write_bytes(changed)
        assert not is_same(copy, noted)
        if not place:  # not even if its time is the same
            os.utime(copy, ns=(noted["modified"],) * 2)
            assert not is_same(copy, noted)
    copy.write_bytes(bytes(size + 1))
    assert not is_same(copy, noted)


def test_a_large_file_whose_time_is_the_same_is_not_read_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(bytes(5_000_000))
    noted = content(path)
    monkeypatch.setattr(files, "_sha256", lambda path: pytest.fail("it was read"))
    assert is_same(shutil.copy2(path, tmp_path / "b"), noted)


def test_a_file_that_has_not_changed_is_hashed_once(tmp_path, monkeypatch):
    path, hashed = tmp_path / "a", []
    path.write_bytes(b"abc")
    sha256 = files.hashlib.sha256
    monkeypatch.setattr(files.hashlib, "sha256", lambda: hashed.append(1) or sha256())
    for _ in range(3):
        files._sha256(path)
    assert len(hashed) == 1
    path.write_bytes(b"abd")
    os.utime(path, ns=(1, 1))
    files._sha256(path)
    assert len(hashed) == 2


def test_what_a_file_held_is_the_hash_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    noted = content(tmp_path / "a")
    assert noted["sha256"] == "ba7816bf8f01cfea414140de5dae2223"  # FIPS 180-2, appendix B.1
    with pytest.raises(ValueError, match="b: no such file"):
        is_same(tmp_path / "b", noted)


@pytest.mark.parametrize("size", [100, 300_000, 2**20, 3_000_001])
def test_the_sample_of_a_file_is_16_blocks_of_64_kib_from_its_first_byte_to_its_last(
        tmp_path, size):
    data = random.Random(size).randbytes(size)
    (tmp_path / "a").write_bytes(data)
    blocks = [data[max(0, size - 2**16) * i // 15 :][: 2**16] for i in range(16)]
    assert content(tmp_path / "a")["sample"] == hashlib.sha256(b"".join(blocks)).hexdigest()[:16]

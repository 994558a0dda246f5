"""Files appear whole or not at all, and leftovers of dead processes are deleted."""

import errno
import multiprocessing
import os
import platform
import subprocess
import sys

import pytest

from minseg.data.files import atomic

NAMES = ["a.json", "a.b.tiff", "plain", "a [1].txt", "*.txt", "a?.txt", "[!a].txt", "ä ö.csv"]
HOST = platform.node().replace(".", "-")


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(path, process, host=HOST):
    """The temporary file that a process with this id writes before renaming it to `path`."""
    return path.with_name(f".{path.stem}.{host}-{process}{path.suffix}")


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


def test_a_block_that_writes_nothing_fails_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic(path):
        pass
    with pytest.raises(ValueError), atomic(path):  # not hidden by the missing file
        raise ValueError
    assert listed(tmp_path) == ["a.txt"] and path.read_text() == "old"


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


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody can tell who is alive")
@pytest.mark.parametrize("name", NAMES)
def test_leftovers_of_a_dead_process_are_deleted_before_the_file_is_written(tmp_path, name, dead):
    path = tmp_path / name
    left = left_by(path, dead)
    left.write_bytes(b"half")
    with atomic(path) as temporary:
        assert not left.exists()
        temporary.write_bytes(b"new")
    assert listed(tmp_path) == [name]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nobody can tell who is alive")
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
    assert path.read_text() == "old"
    assert listed(tmp_path) == sorted(["a.txt", left_by(path, process.pid).name])
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert listed(tmp_path) == ["a.txt"] and path.read_text() == "new"


@pytest.mark.parametrize("name", NAMES)
def test_files_of_living_processes_other_machines_and_other_names_are_kept(tmp_path, name, dead):
    path = tmp_path / name
    other = path.with_name(f"{path.stem}2{path.suffix}")
    kept = [left_by(path, os.getppid()), left_by(path, dead, "elsewhere"),
            left_by(path, dead, f"{HOST}-2"), left_by(path, dead, f"{HOST}2"),
            left_by(path, "note"), left_by(path, f"{dead}x"), left_by(path, ""),
            left_by(other, dead), left_by(path.with_name("x" + name), dead),
            left_by(path, dead).with_suffix(".other"), path.with_name(left_by(path, dead).name[1:])]
    for file in kept:
        file.write_bytes(b"half")
    for content in b"1", b"2":
        with atomic(path) as temporary:
            assert temporary not in kept
            temporary.write_bytes(content)
        assert listed(tmp_path) == sorted([name, *(file.name for file in kept)])
        assert path.read_bytes() == content


def test_wildcards_in_a_name_do_not_match_other_files(tmp_path, dead):
    for name, other in (("*.txt", "b.txt"), ("a?.txt", "ab.txt"), ("[!a].txt", "b.txt")):
        kept = left_by(tmp_path / other, dead)
        kept.write_bytes(b"half")
        with atomic(tmp_path / name) as temporary:
            temporary.write_bytes(b"new")
        assert kept.exists()


def test_a_process_of_another_user_counts_as_alive(tmp_path, monkeypatch):
    def not_ours(process, signal):
        assert signal == 0
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_ours)
    kept = left_by(tmp_path / "a.txt", 12345)
    kept.write_bytes(b"half")
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_bytes(b"new")
    assert listed(tmp_path) == sorted(["a.txt", kept.name])


def test_another_program_may_be_first_to_delete_the_leftovers(tmp_path, monkeypatch):
    left = left_by(tmp_path / "a.txt", 12345)
    left.write_bytes(b"half")

    def dies(process, signal):
        left.unlink()
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", dies)
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_bytes(b"new")
    assert listed(tmp_path) == ["a.txt"] or os.name != "posix"


def test_dots_in_the_name_of_the_host_do_no_harm(tmp_path, monkeypatch, dead):
    monkeypatch.setattr(platform, "node", lambda: "node7.example.org")
    left = left_by(tmp_path / "a.txt", dead, "node7-example-org")
    left.write_bytes(b"half")
    with atomic(tmp_path / "a.txt") as temporary:
        assert temporary.name == f".a.node7-example-org-{os.getpid()}.txt"
        assert not left.exists() or os.name != "posix"
        temporary.write_bytes(b"new")


def test_the_error_for_a_full_disk_names_the_file(tmp_path):
    with (pytest.raises(OSError, match="No space left.*mask.tif"),
          atomic(tmp_path / "mask.tif") as temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())

"""# Files that are either complete or absent, and what is in them

A file is written under a temporary name in the same folder and renamed at the end. If the program
is killed, the old file or the new one is there, never half of one. While a program writes, it holds
a lock on the temporary file. A lock ends with its program, so the next program that writes the same
file can tell which temporary files are left over, and deletes them. (Process numbers would not do:
two containers can have the same ones.)

`content` notes what is in a file, and `is_same` tells later, at any place, whether it still is.
"""

import errno
import glob
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

BLOCK = 2**16  # bytes


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """`with atomic(path) as temporary: write(temporary)` puts the file at `path` in a single
    rename. The temporary file exists already, empty, and has the same suffix. If the block fails,
    `path` is left as it was and the temporary file is deleted."""
    path = Path(path)
    _delete_leftovers(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    try:
        with open(temporary, "xb") as held:
            if lock(held) is None:
                held.close()  # Windows cannot rename an open file
            yield temporary
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:  # name the file
            raise OSError(error.errno, os.strerror(error.errno), str(path))
        raise
    finally:
        temporary.unlink(missing_ok=True)


def lock(file: IO) -> bool | None:
    """Locks an open file until it is closed or the process ends. False if another process, or
    another open file of this one, holds the lock; None where there are no locks (Windows, some
    network disks)."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None


def _delete_leftovers(path: Path) -> None:
    """Deletes the temporary files that programs left when they were killed while they wrote
    `path`."""
    names = f".{glob.escape(path.stem)}.{'[0-9a-f]' * 16}{glob.escape(path.suffix)}"
    for leftover in path.parent.glob(names):
        try:
            with open(leftover, "r+b") as file:
                if lock(file):
                    leftover.unlink(missing_ok=True)
        except OSError:  # another program was first, or it belongs to another user
            continue


def identity(path: str | Path) -> tuple[str, int, int, int]:
    """Place, size and times of modification and of change of a file: while these are the same, so
    is the file. ValueError where it is missing."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    return str(Path(path).resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content(path: str | Path) -> dict:
    """What is in a file, whatever its name and place: its size in `bytes`, when it was `modified`
    (nanoseconds), the SHA-256 of a `sample` of 16 blocks, and that of all of it. ValueError where
    it is missing."""
    return {**_sample(path), "sha256": _sha256(path)}


def is_same(path: str | Path, noted: dict) -> bool:
    """Whether a file holds what `content` noted. The whole file is only read if it has the same
    size and the same sample, but another time of modification, as a copy has. ValueError where it
    is missing."""
    sample = _sample(path)
    if any(sample[name] != noted[name] for name in ("bytes", "sample")):
        return False
    return sample["modified"] == noted["modified"] or _sha256(path) == noted["sha256"]


def _sample(path: str | Path) -> dict:
    _, size, modified, _ = identity(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for i in range(16):
            file.seek(max(0, size - BLOCK) * i // 15)
            digest.update(file.read(BLOCK))
    return {"bytes": size, "modified": modified, "sample": digest.hexdigest()[:16]}


def _sha256(path: str | Path) -> str:
    return _sha256_of(*identity(path))


@lru_cache(4096)
def _sha256_of(path: str, *unchanged: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:32]

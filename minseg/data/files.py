"""# Files that are complete or not there

A file is written beside its place under another name and moved onto it at the end: a killed program
leaves the old file or the new one, never half of one. What it left under the other name is deleted
by the next program that writes the same file on that machine.
"""

import errno
import glob
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """`with atomic(path) as temporary: write(temporary)` puts the file at `path` in one move. The
    temporary file keeps the suffix. Nothing stays where the block fails."""
    path = Path(path)
    host = platform.node().replace(".", "-")  # the folder may be shared by several machines
    name = f".{path.stem}.{host}-"
    for old in path.parent.glob(f"{glob.escape(name)}*{glob.escape(path.suffix)}"):
        process = old.name[len(name) : len(old.name) - len(path.suffix)]
        if process.isdigit() and not _alive(int(process)):
            old.unlink(missing_ok=True)
    temporary = path.with_name(f"{name}{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC and not error.filename:  # say where
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        raise
    finally:
        temporary.unlink(missing_ok=True)


def identity(path: str | Path) -> tuple[str, int, int]:
    """What changes when a file does: its place, size and time of change. ValueError where it is
    missing."""
    try:
        facts = Path(path).stat()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    return str(Path(path).resolve()), facts.st_size, facts.st_mtime_ns


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere there is no harmless way to ask
    try:
        os.kill(process, 0)  # asks only
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True

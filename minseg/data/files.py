"""# Files that are either complete or absent

A file is written under a temporary name in the same folder and renamed at the end. If the program
is killed, the old file or the new one is there, never half of one. The temporary file that it
leaves behind is deleted by the next program that writes the same file on the same machine.
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
    """`with atomic(path) as temporary: write(temporary)` puts the file at `path` in a single
    rename. The temporary file has the same suffix. If the block fails, `path` is left as it was and
    the temporary file is deleted."""
    path = Path(path)
    host = platform.node().replace(".", "-")  # several machines may share the folder
    prefix = f".{path.stem}.{host}-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*{glob.escape(path.suffix)}"):
        process = leftover.name[len(prefix) : len(leftover.name) - len(path.suffix)]
        if process.isdigit() and not _is_alive(int(process)):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f"{prefix}{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC and not error.filename:  # name the file that did not fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        raise
    finally:
        temporary.unlink(missing_ok=True)


def identity(path: str | Path) -> tuple[str, int, int]:
    """Place, size and modification time of a file: if these are the same, so is the file.
    ValueError where it is missing."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    return str(Path(path).resolve()), status.st_size, status.st_mtime_ns


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere there is no harmless way to find out
    try:
        os.kill(process, 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return False
    except OSError:  # it exists, but belongs to another user
        pass
    return True

"""# What a user is told when a program has to stop

One line on stderr says what went wrong and what to do about it, and the exit code is not 0. Only an
unforeseen error shows a traceback.
"""

import argparse
import errno
import io
import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..processes import rank, world


def print_any_name() -> None:
    """From now on a character that the terminal or a log file cannot show, as in the name of a
    file, is printed as an escape, \\u5207, and no longer ends the program. Nor does a program end
    that was started without stdout or stderr, as by `2>&-` or pythonw."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def warn(text: object) -> None:
    """Prints one line on stderr, after the name of the running program. The program goes on."""
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


class Stopped(Exception):
    """The user asked to stop. All work so far is saved: `epochs`, if they are known."""

    def __init__(self, where: str = "", epochs: float = 0.0):
        super().__init__(where)
        self.epochs = epochs


def whole_hundredths(number: float) -> float:
    """Rounded down to hundredths, since `--epochs` closes a run that has done at least as many.

    >>> whole_hundredths(2.999), whole_hundredths(0.29)
    (2.99, 0.29)
    """
    return math.floor(100 * number + 1e-9) / 100


class Unfinished(Exception):
    """A fold that was to be trained is not complete, and this program could not train it."""


EXIT_CODES = {Stopped: 130, Unfinished: 3}


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python raised this error because there was no memory left."""
    phrases = "can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or any(phrase in str(error) for phrase in phrases)


def check_probabilities(band: Tensor, y: int, path: Path, amp: bool) -> None:
    """ValueError names the slide at `path` and the rows, from `y` on, if probabilities (C, rows,
    width) are not numbers: compared with a threshold, they would all be background."""
    if not band.sum().isnan():
        return
    wrong = band.isnan().any(2).any(0).nonzero()[:, 0]
    if len(wrong):
        remedy = ("its values are too large for 16 bits: compute in 32 (infer.py: without --amp; "
                  "train.py: --resume --amp off)" if amp else "train it again at a lower --lr")
        raise ValueError(f"{path}: in rows {y + int(wrong[0])} to {y + int(wrong[-1])} the network "
                         f"gives probabilities that are not numbers (NaN): {remedy}")


def plain(error: Exception) -> str:
    """The text of an error; of one by the operating system: the file, what is wrong, a remedy."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    free_some = ": free some, then give the same command again"
    remedy = {errno.ENOSPC: free_some, errno.EDQUOT: free_some,
              errno.ENAMETOOLONG: ": give it a shorter name",
              errno.EROFS: ": write to another disk, with --out",
              errno.EACCES: ": change its permissions, or give another --out"}
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}{remedy.get(error.errno or 0, '')}"


def explain(error: Exception, args: argparse.Namespace) -> str | None:
    """What went wrong in a training run, and the remedy. None for an unforeseen error."""
    if isinstance(error, Stopped):
        words = [word for word in args.command if word != "--resume"]
        program = ["python"] if world() == 1 else [
            "torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", str(world()))]
        command = shlex.join([*program, "train.py", *words, "--resume"])
        close = (f" (or, with --epochs {error.epochs:g} added, end the fold as it is)"
                 if error.epochs else "")
        return f"stopped {error}; go on with{close}\n    {command}"
    if isinstance(error, Unfinished):
        return str(error)
    if isinstance(error, FloatingPointError):
        return (f"{error}: the last good checkpoint, if there is one, goes on with --resume and a "
                "lower --lr")
    if out_of_memory(error):
        return (f"out of memory on {args.device}: add --checkpoint-activations and go on with "
                f"--resume, or, in another --out, lower --batch {args.batch} (and raise "
                "--accumulate) or --tile")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{plain(error)} with --resume"
    return plain(error) if isinstance(error, (ValueError, OSError)) else None


@contextmanager
def explained(args: argparse.Namespace, exit_code: int) -> Iterator[None]:
    """For train.py: turns errors inside the block into one line on stderr and the exit code (130 if
    the user asked to stop, 3 if a fold is left unfinished)."""
    try:
        yield
    except Exception as error:
        if (explanation := explain(error, args)) is None:
            raise
        if not (rank() and isinstance(error, (Stopped, FloatingPointError))):  # the first says so
            print(f"train.py: {explanation}", file=sys.stderr)
        sys.exit(EXIT_CODES.get(type(error), exit_code))

"""Parts of a long measurement: each in a process of its own, with a limit of time.

A part is a function of its arguments and a folder for its files, which is deleted afterwards. It
yields rows, dictionaries with a "way"; "asked" in a row says what some of its values should be. A
part that fails or takes too long ends alone, and its rows so far are kept.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from minseg.run.errors import out_of_memory
from minseg.run.report import Progress, duration

from .measure import write_json

Part = Callable[[argparse.Namespace, Path], Iterator[dict]]
SPAWN = multiprocessing.get_context("spawn")  # CUDA does not work in forked processes


def work(part: Part, args: argparse.Namespace, folder: Path, sender) -> None:
    """In the process: sends each row, at the end "", or the reason why the part failed."""
    if os.name == "posix":
        os.setpgrp()  # what the part starts belongs to its group, and ends with it
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for row in part(args, folder):
                sender.send(row)
        sender.send("")
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        reason = "out of memory" if out_of_memory(error) else " ".join(str(error).split())[:200]
        sender.send(f"{type(error).__name__}: {reason}")


def run(name: str, part: Part, args: argparse.Namespace, limit: float,
        take: Callable[[dict], None]) -> str:
    """Runs a part for at most `limit` seconds, shows its progress, and calls `take` with each row.
    Returns "done", or in one line how else it ended."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    bar, start = Progress(float(limit), name), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minseg-", ignore_cleanup_errors=True) as folder:
        process = SPAWN.Process(target=work, args=(part, args, Path(folder), sender))
        process.start()
        sender.close()  # this process's end: once the other is closed, too, `recv` raises EOFError
        try:
            while (passed := time.monotonic() - start) < limit:
                bar.step(passed - bar.done)
                if receiver.poll(min(1.0, limit - passed)):
                    if isinstance(found := receiver.recv(), str):
                        process.join(5)
                        return f"failed: {found}" if found else "done"
                    bar.say(f"{name}: {text(found)}")
                    take(found)
            return f"cut off after {duration(limit)}"
        except EOFError:
            process.join()
            return f"failed: its process ended with {process.exitcode}"
        finally:
            stop(process)
            bar.step(limit - bar.done)


def run_all(parts: dict[str, tuple[Part, float]], args: argparse.Namespace, minutes: float,
            path: Path, facts: dict) -> bool:
    """Runs the parts in turn, each for at most a share of the minutes and for what is left of them.
    After each row, writes the `facts` and all that was found to `path`. Prints a table at the end.
    Returns whether a part is not done."""
    end, results = time.monotonic() + 60 * minutes, {}
    for name, (part, share) in parts.items():
        start = time.monotonic()
        limit, rows = min(60 * minutes * share, end - start), []
        results[name] = {"state": "stopped", "seconds": 0.0, "rows": rows}

        def take(row: dict, rows=rows) -> None:
            rows.append(row)
            write_json(path, {**facts, "minutes": minutes, "parts": results})

        print(f"\n{name}: {part.__doc__} {duration(max(0, limit))} at most; "
              f"{duration(max(0, end - start))} left in all", flush=True)
        state = run(name, part, args, limit, take) if limit > 5 else "no time was left"
        results[name] |= {"state": state, "seconds": round(time.monotonic() - start, 1)}
        write_json(path, {**facts, "minutes": minutes, "parts": results})
    print("", table(results), path, sep="\n")
    return any(result["state"] != "done" for result in results.values())


def stop(process) -> None:
    """Ends a part's process and all that it has started."""
    with contextlib.suppress(OSError, AttributeError):  # has ended; Windows, which has no groups
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def text(row: dict) -> str:
    """A row in one line."""
    return f"{row['way']}: " + ", ".join(f"{name} {value}" for name, value in row.items()
                                         if name not in ("way", "asked", "output"))


def table(parts: dict[str, dict]) -> str:
    """What was asked beside what was measured, then what is missing. A part: its "state", as `run`
    returned it, and its "rows"."""
    lines, gaps = [("", "measured", "asked")], []
    for name, part in parts.items():
        for row in part["rows"]:
            lines += [(f"{name}: {row['way']}, {value}", row[value], asked)
                      for value, asked in row.get("asked", {}).items()]
            gaps += [f"{name}: {text(row)}"] if "skipped" in row else []
        gaps += [f"{name}: {part['state']}"] if part["state"] != "done" else []
    return "\n".join([*(f"{what:60} {found!s:>10}   {asked}" for what, found, asked in lines),
                      *gaps])

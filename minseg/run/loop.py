"""# What goes on around the training loop

Saving and resuming, progress, the log, stopping when asked, and the watch for losses that are not
finite: all that a run needs and that would hide the few lines of `train.py` that train.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.tiles import Tiles
from .checkpoint import restore, save_progress
from .errors import Stopped
from .report import Progress
from .scores import save_log

SAVE_EVERY = 300  # seconds
LOOK_EVERY = 50  # steps
MOST_SKIPPED = 20  # steps in a row

Step = Sequence[Sequence[int]]  # the tile numbers of a step, micro-batch by micro-batch


class Run:
    """A training run as the loop sees it: which step it is at, and what to call after each.

        with Run(...) as run:
            for epoch in range(run.epoch, plan.epochs):
                for step in run.remaining(steps of the epoch):
                    ...
                    run.after_step(loss, rate, step)
                run.after_epoch(dice)

    - It counts: `step` is the number of steps done, `epoch` the number of epochs done.
    - It saves: `resume.pt` is written after each epoch, and every five minutes in between. It holds
      the state of every object in `states` (network, EMA, optimiser, loss scaler) and the counts.
    - It resumes: with `--resume` the states are put back, and `remaining` leaves out the steps that
      were done. All random numbers depend on the seed and the step, so on a CPU the rest of the run
      is the same, to the bit, as if it had never been interrupted.
    - It stops: inside the `with` block, Ctrl-C or SIGTERM lets the current step (or the scoring
      after an epoch) finish, saves, and raises `Stopped`.
    - It watches: a loss or a weight that is not finite raises FloatingPointError, before the last
      good `resume.pt` is replaced.
    - It reports: progress with the time left, log.csv and curves.png.
    """

    def __init__(self, args: argparse.Namespace, plan: Any, tiles: Tiles, folder: Path,
                 states: dict[str, Any]):
        self.args, self.plan, self.tiles, self.folder = args, plan, tiles, folder
        self.states, self.step = states, 0
        self.rows: list[dict] = []  # of log.csv, one for each epoch that is done
        self.loss_sum = torch.zeros((), device=args.device)  # of the current epoch
        self.seconds_before = 0.0  # spent before the run was resumed
        if args.resume and (saved := restore(folder / "resume.pt", states, tiles.mask_area,
                                             plan.steps_per_epoch)):
            self.step, self.rows = saved["done"], saved["rows"]
            self.loss_sum += saved["total"]
            self.seconds_before = saved["spent"]
        self.start = self.last_save = time.monotonic()
        self.watch = Watch(tiles.describe)
        self.progress = Progress(plan.steps, f"training {folder.name}", self.step)
        self.signals = stop_when_asked()

    @property
    def epoch(self) -> int:
        """The number of epochs done."""
        return len(self.rows)

    def __enter__(self) -> "Run":
        self.stop = self.signals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.signals.__exit__(*error)

    def remaining(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Those of an epoch's `steps` that are not done yet, and not beyond the end of the run."""
        steps = steps[self.step % self.plan.steps_per_epoch :]
        return steps[: self.plan.steps - self.step]

    def after_step(self, loss: Tensor, rate: float, step: Step) -> None:
        """To be called after each step with its loss (on the device), learning rate and tiles."""
        self.loss_sum += loss
        self.watch.add(self.step, loss, self.states["scaler"], rate, step)
        self.step += 1
        if self.step % self.plan.steps_per_epoch == 0 or self.step == self.plan.steps:
            self.check()  # before minutes go into scoring a broken network
        if self.step % self.plan.steps_per_epoch and (
                self.stop.is_set() or time.monotonic() - self.last_save > SAVE_EVERY):
            self.save()
            self.stop_if_asked(f"after step {self.step} of {self.plan.steps}")
        self.progress.step(text=f"epoch {self.epoch + 1}/{self.plan.epochs}")

    def after_epoch(self, held_out_dice: float) -> None:
        """To be called after each epoch: logs, saves."""
        steps = self.step - self.epoch * self.plan.steps_per_epoch
        seconds = self.elapsed() - sum(row["seconds"] for row in self.rows)
        row = {"epoch": self.epoch + 1, "steps": self.step,
               "stage": 2 if self.step > self.plan.first_stage_steps else 1,  # of the last step
               "loss": round(self.loss_sum.item() / steps, 5),
               "held_out_dice": round(held_out_dice, 5), "seconds": round(seconds, 1)}
        self.rows.append(row)
        self.loss_sum.zero_()
        self.progress.say("epoch {epoch}  loss {loss:.4f}  held-out Dice {held_out_dice:.4f}  "
                          "{seconds} s".format(**row))
        losses = self.args.loss + (f", then {self.args.then}" if self.args.then else "")
        save_log(self.folder, self.rows, f"{self.args.encoder}, {losses}, {self.folder}")
        self.save()
        self.stop_if_asked(f"after epoch {self.epoch} of {self.plan.epochs}")

    def elapsed(self) -> float:
        """Seconds of training, before the run was resumed and since."""
        return self.seconds_before + time.monotonic() - self.start

    def check(self) -> None:
        """FloatingPointError where a loss or a number of the EMA is not finite."""
        average = self.states["average"].state_dict().values()
        self.watch.check([value for value in average if value.is_floating_point()])

    def save(self) -> None:
        """Writes resume.pt, unless something in it is not finite."""
        self.check()
        save_progress(self.folder / "resume.pt", done=self.step, rows=self.rows,
                      total=self.loss_sum.item(), length=self.plan.steps_per_epoch,
                      areas=self.tiles.mask_area, spent=self.elapsed(),
                      **{name: part.state_dict() for name, part in self.states.items()})
        self.last_save = time.monotonic()

    def stop_if_asked(self, where: str) -> None:
        """Raises `Stopped` if a signal came."""
        if self.stop.is_set():
            raise Stopped(where)


class Watch:
    """Losses and loss scales. They stay on the device, where they cost no waiting, and are looked
    at once in `LOOK_EVERY` steps. `describe` names the tiles of a batch, for the message."""

    def __init__(self, describe: Callable[[Sequence[int]], str]):
        self.describe = describe
        self.unseen: list[tuple[int, Tensor, float, Step]] = []
        self.last_step, self.skipped, self.scale = 0, 0, 0.0

    def add(self, step: int, loss: Tensor, scaler: torch.amp.GradScaler, rate: float,
            tiles: Step) -> None:
        """Remembers a step; looks at those that have come together when there are enough."""
        self.last_step = step
        scale = scaler.scale(torch.ones_like(loss))  # the scale itself, without asking the device
        self.unseen.append((step, torch.stack([loss, scale]), rate, tiles))
        if len(self.unseen) >= LOOK_EVERY:
            self.check()

    def check(self, weights: Sequence[Tensor] = ()) -> None:
        """FloatingPointError where a loss or one of `weights` is not finite, or where too many
        steps in a row were skipped. To be called before anything is saved."""
        steps, self.unseen = self.unseen, []
        values = torch.stack([pair for _, pair, _, _ in steps]).tolist() if steps else []
        for (step, _, rate, tiles), (loss, scale) in zip(steps, values):
            self.skipped = self.skipped + 1 if scale < self.scale else 0
            self.scale = scale
            if abs(loss) < float("inf") and self.skipped < MOST_SKIPPED:  # false for NaN, too
                continue
            what = (f"{MOST_SKIPPED} steps in a row had gradients too large for 16 bits"
                    if self.skipped >= MOST_SKIPPED else f"the loss is {loss}")
            raise FloatingPointError(f"step {step}: {what}; learning rate {rate:.3g}, tiles "
                                     + self.describe([i for batch in tiles for i in batch]))
        if not all(weight.isfinite().all() for weight in weights):
            raise FloatingPointError(f"step {self.last_step}: the weights are no longer finite")


@contextmanager
def stop_when_asked() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM sets the event, and the loop ends when it suits; the second one
    ends the program at once."""
    asked = threading.Event()
    handlers: dict[int, Any] = {}

    def ask(number, frame):
        asked.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with suppress(OSError, RuntimeError):  # the reader of a pipe may have been stopped as well
            print("\nstopping after this step (once more: at once)", file=sys.stderr, flush=True)

    if threading.current_thread() is threading.main_thread():
        handlers.update({n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def claim_fold(folder: Path, resume: bool) -> Iterator[bool]:
    """Makes a fold's folder and locks it, since several processes can share a run. False, and a
    line that says why, where the fold is complete, interrupted (without `resume`), or being trained
    by another process."""
    reason = None
    if (folder / "model.pt").exists():
        reason = "is there already"
    else:
        try:
            folder.mkdir(exist_ok=resume)
        except FileExistsError:
            reason = "is unfinished: if no process is at work there, add --resume"
    if reason:
        print(f"{folder}: {reason}")
        yield False
        return
    with locked(folder) as free:
        if not free:
            print(f"{folder}: another process is at work there")
        yield free


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder to itself, by a lock on the file .lock in it. The system
    releases it when the process ends, however it ends. Always true where there are no such
    locks."""
    with open(folder / ".lock", "a+b") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except (ImportError, OSError):  # Windows; a file system without locks
            free = True
        yield free

"""What a program says when it has to stop: the texts, and the exit codes."""

import errno
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minseg.run import errors
from minseg.run.errors import (
    Stopped,
    Unfinished,
    check_probabilities,
    explain,
    explained,
    out_of_memory,
    plain,
    print_any_name,
    warn,
    whole_hundredths,
)

ARGS = SimpleNamespace(command=["--data", "my slides", "--resume"], device="cuda", batch=8)


@pytest.mark.parametrize("error, memory", [
    (MemoryError(), True), (torch.OutOfMemoryError("CUDA"), True),
    (RuntimeError("can't allocate memory: 9 bytes"), True), (RuntimeError("out of memory"), True),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
    (RuntimeError("shapes differ"), False), (ValueError("memory"), False)])
def test_each_way_to_run_out_of_memory_is_known(error, memory):
    assert out_of_memory(error) == memory
    assert (explain(error, ARGS) or "").startswith("out of memory on cuda: add --check") == memory


@pytest.mark.parametrize("number, remedy", [
    (errno.ENOSPC, ": free some, then give the same command again"),
    (errno.EDQUOT, ": free some, then give the same command again"),
    (errno.ENAMETOOLONG, ": give it a shorter name"),
    (errno.EROFS, ": write to another disk, with --out"),
    (errno.EACCES, ": change its permissions, or give another --out"), (errno.EIO, "")])
def test_an_error_of_the_system_names_the_file_and_a_remedy(number, remedy):
    assert plain(OSError(number, "it failed", "a.tif")) == f"a.tif: it failed{remedy}"
    assert plain(OSError(number, "it failed")) == f"it failed{remedy}"
    resume = " with --resume" if number in (errno.ENOSPC, errno.EDQUOT) else ""
    assert explain(OSError(number, "it failed"), ARGS) == f"it failed{remedy}{resume}"


def test_other_errors_are_told_in_their_own_words():
    assert plain(OSError("no number")) == "no number" and plain(ValueError("a: b")) == "a: b"
    assert explain(ValueError("a: b"), ARGS) == "a: b"
    assert explain(Unfinished("fold1"), ARGS) == "fold1"
    assert explain(FloatingPointError("step 7"), ARGS) == (
        "step 7: the last good checkpoint, if there is one, goes on with --resume and a lower --lr")
    assert explain(KeyError("unforeseen"), ARGS) is None


def test_whoever_stops_a_run_is_told_how_to_go_on_and_once_there_is_something_how_to_close():
    command = "\n    python train.py --data 'my slides' --resume"
    assert explain(Stopped("after step 7"), ARGS) == f"stopped after step 7; go on with{command}"
    assert explain(Stopped("at 3", 0.25), ARGS) == (
        f"stopped at 3; go on with (or, with --epochs 0.25 added, end the fold as it is){command}")


@pytest.mark.parametrize("error, code", [
    (Stopped("at 3"), 130), (Unfinished("fold1"), 3), (ValueError("bad"), 7), (MemoryError(), 7)])
def test_the_exit_code_tells_what_happened(capsys, error, code):
    with pytest.raises(SystemExit) as end, explained(ARGS, 7):
        raise error
    assert end.value.code == code
    assert capsys.readouterr().err.startswith("train.py: ")
    with pytest.raises(KeyError), explained(ARGS, 7):
        raise KeyError("unforeseen")


@pytest.mark.parametrize("number, wanted", [(2.999, 2.99), (0.29, 0.29), (1.0, 1.0), (0.001, 0)])
def test_hundredths_are_rounded_down(number, wanted):
    assert whole_hundredths(number) == wanted


def test_what_a_stream_cannot_show_is_escaped_and_a_stream_that_is_missing_is_silent(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    print_any_name()
    print("a\u5207", flush=True)
    assert stream.buffer.getvalue().split() == [b"a\\u5207"]
    print("nobody reads this", file=sys.stderr)
    sys.stderr.close()


def test_a_warning_names_the_program(capsys, monkeypatch):
    monkeypatch.setattr(errors.sys, "argv", ["some/where/infer.py"])
    warn("a line")
    assert capsys.readouterr().err == "infer.py: a line\n"
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stderr", stream)
    warn("seen at once")
    assert stream.buffer.getvalue().rstrip() == b"infer.py: seen at once"


@pytest.mark.parametrize("amp, remedy", [
    (True, "its values are too large for 16 bits: compute in 32 (infer.py: without --amp; "
           "train.py: --resume --amp off)"), (False, "train it again at a lower --lr")])
def test_probabilities_that_are_not_numbers_are_named_by_slide_and_rows(amp, remedy):
    band = torch.rand(2, 5, 4)
    check_probabilities(band, 30, Path("a.tiff"), amp)
    band[0, 1, 3] = band[1, 3, 0] = torch.nan
    with pytest.raises(ValueError) as error:
        check_probabilities(band, 30, Path("a.tiff"), amp)
    assert str(error.value) == ("a.tiff: in rows 31 to 33 the network gives probabilities that are "
                                f"not numbers (NaN): {remedy}")

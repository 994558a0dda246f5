"""Runs in folders of their own: each is done once, and one that fails stops no other."""

import json

import pytest

from lab import harness
from minseg.run.errors import Stopped
from minseg.run.loop import locked

FACTS = {"device": "cpu", "torch": "2", "threads": 1, "commit": "a", "date": "b"}


def fails():
    raise FloatingPointError("the loss is nan")


def test_each_job_is_done_once_and_one_that_fails_stops_no_other(tmp_path, capsys):
    done: list[str] = []

    def job(name):
        return lambda: {"name": done.append(name) or name}

    jobs = {tmp_path / "a": job("a"), tmp_path / "b": fails, tmp_path / "c": job("c")}
    assert not harness.work("some", jobs, FACTS)
    assert capsys.readouterr().err == "b: the loss is nan\n" and done == ["a", "c"]
    assert json.loads((tmp_path / "c/result.json").read_text()) == {"name": "c", **FACTS}
    jobs[tmp_path / "b"] = job("b")
    assert harness.work("some", jobs, FACTS) and done == ["a", "c", "b"]


def test_a_job_of_another_process_is_left_to_it(tmp_path):
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        assert harness.work("some", {tmp_path / "a": fails}, FACTS)


def test_a_stopped_training_ends_the_program(tmp_path):
    def stops():
        raise Stopped("after step 1 of 2")

    with pytest.raises(KeyboardInterrupt):
        harness.work("some", {tmp_path / "a": stops}, FACTS)


def test_results_are_returned_by_job_or_the_program_ends(tmp_path):
    jobs = [("a", 1), ("a", 2)]

    def folder_of(name, number):
        return tmp_path / f"{name}{number}"

    def run(name, number):
        return {"number": number} if number == 1 else fails()

    with pytest.raises(SystemExit, match="1 of 2 runs are missing"):
        harness.finish("some", jobs, folder_of, run, FACTS)
    found = harness.finish("some", jobs, folder_of, lambda name, number: {"number": number}, FACTS)
    assert [found[job]["number"] for job in jobs] == [1, 2]


def test_runs_of_other_settings_do_not_go_into_the_same_folder(tmp_path):
    for _ in range(2):
        harness.claim(tmp_path, options=["--lr", "1e-3"])
    with pytest.raises(ValueError, match="give another --out"):
        harness.claim(tmp_path, options=["--lr", "1e-4"])


def test_what_is_published_says_where_it_was_measured(tmp_path):
    lines = [{"x": 1, **FACTS}, {"x": 2, **FACTS, "torch": "1"}]
    path = harness.publish(tmp_path / "a.json", lines, {"rows": []})
    assert json.loads(path.read_text())["torch"] == ["1", "2"]
    read = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert read == lines


def test_options_that_the_programs_set_are_refused(capsys):
    parser = harness.make_parser("some", "It does something.", seeds=2)
    args = harness.parse_known(parser, ["--seeds", "1", "--lr", "1e-3"])
    assert (args.seeds, args.options) == (1, ["--lr", "1e-3"])
    for argv, own in ((["--epochs=3"], ""), (["--recipe", "post"], "--recipe")):
        with pytest.raises(SystemExit):
            harness.parse_known(parser, argv, own)
        assert "this program sets it itself" in capsys.readouterr().err

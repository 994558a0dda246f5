"""Tiles go when no unfinished run uses them, and only then."""

import json
import os
from types import SimpleNamespace

import pytest

from minseg.files.atomic import lock
from minseg.run.clean import NEW, delete_superseded, main


@pytest.fixture
def runs(tmp_path):
    """Tiles a, b, c and d: a is used by an unfinished run, b by a complete one, d is new."""
    (tmp_path / "tiles").mkdir()
    for name in "abcd":
        for suffix in (".tiles", ".json"):
            path = tmp_path / "tiles" / f"{name}{suffix}"
            path.write_bytes(bytes(3_000_000 if suffix == ".tiles" else 1000))
            if name != "d":
                os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * NEW))
    for run, used in (("unfinished", ["a.tiles"]), ("complete", ["a.tiles", "b.tiles"])):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.json").write_text(json.dumps({"tiles": used}))
    (tmp_path / "complete" / "summary.json").write_text("{}")
    return tmp_path


def test_only_tiles_that_no_unfinished_run_uses_are_deleted(runs, capsys):
    (runs / "tiles" / "c.json").unlink()
    main([str(runs)])
    assert sorted(path.name for path in (runs / "tiles").iterdir()) == [
        "a.json", "a.tiles", "d.json", "d.tiles"]
    assert "2 files deleted, 6 MB" in capsys.readouterr().out
    main([str(runs)])
    assert "0 files deleted" in capsys.readouterr().out


def test_nothing_is_deleted_where_a_run_does_not_say_what_it_uses(runs, capsys):
    (runs / "unfinished" / "config.json").write_text("{}")
    before = set(runs.rglob("*"))
    with pytest.raises(SystemExit) as error:
        main([str(runs)])
    assert error.value.code == 2 and set(runs.rglob("*")) == before
    assert "config.json: does not say which tiles the run uses" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(runs / "unfinished")])
    assert "tiles: no such folder" in capsys.readouterr().err


def test_old_tiles_of_an_image_go_when_it_is_cut_again_but_not_from_under_a_run(tmp_path):
    def tiles(name, *source):
        for suffix, text in ((".tiles", ""), (".json", json.dumps({"source": list(source)}))):
            (tmp_path / "tiles" / f"{name}{suffix}").write_text(text)
        return SimpleNamespace(file=f"{name}.tiles", source=list(source))

    (tmp_path / "tiles").mkdir()
    old, other_scale, other_image = (tiles(*each) for each in (
        ("a-0", "a", "here", 1), ("a-1", "a", "here", 2), ("b-2", "b", "here", 1)))
    (tmp_path / "tiles" / "a-3.json").write_text("not JSON")
    facts = [tiles("a-4", "a", "here", 1)]
    fold = tmp_path / "run" / "fold0"
    fold.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"tiles": [old.file]}))

    def left():
        return sorted(path.name for path in (tmp_path / "tiles").glob("*.tiles"))

    everything = left()
    with open(fold / ".lock", "a+b") as file:
        assert lock(file)
        delete_superseded(tmp_path / "tiles", facts)
        assert left() == everything
    (tmp_path / "tiles" / "a-0.tiles").unlink()
    delete_superseded(tmp_path / "tiles", facts)
    assert left() == [other_scale.file, "a-4.tiles", other_image.file]
    assert not (tmp_path / "tiles" / "a-0.json").exists()

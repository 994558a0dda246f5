"""The grader of the exercises: tests of a chapter, run on the reader's own version of it.

    python -m pytest tests/test_scse.py --mine my_scse.py

What `my_scse.py` defines takes the place of what has the same name in the chapter, in the tests
and wherever else minseg uses it. What it leaves out stays the chapter's, so a part can be written
alone. But whoever rewrites what the chapter is for (`SCSE`) need not have its helpers: tests of a
helper that the file lacks are skipped. The file has to import what it uses, like any module.

If `my_scse.py` is not there, it is written first: what the exercise "Write it" asks for, with its
docstrings, which say what is refused and with which types it has to work, but without its code.
"""

import ast
import re
import sys
import traceback
from importlib import import_module, util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--mine", metavar="FILE", type=Path,
                     help="test FILE in place of the chapter that the one test file is about")


def pytest_configure(config):
    file = config.option.mine
    if file is None:
        return
    chapter = chapter_under_test(config.args, file)
    if file.is_file() and file.samefile(chapter.__file__):
        raise pytest.UsageError(f"{file}: is the chapter itself: give a copy of it")
    if not file.exists() and file.suffix == ".py" and file.parent.is_dir():
        file.write_text(skeleton(chapter), encoding="utf-8")
        raise pytest.UsageError(f"{file}: was not there: now it holds what the exercise asks for, "
                                "without code: fill it in, and give the same command again")
    mine = run_alone(file)
    parts = {name: value for name, value in vars(chapter).items()
             if getattr(value, "__module__", None) == chapter.__name__}  # functions and classes
    public = [name for name in parts if hasattr(sys.modules["minseg"], name)]
    public = public or [name for name in parts if not name.startswith("_")]
    written = [name for name, value in parts.items() if getattr(mine, name, value) is not value]
    if not written:
        raise pytest.UsageError(f"{file}: has no {' or '.join(public)}")
    config.graded = f"grading {file} in place of minseg/{Path(chapter.__file__).name}: "
    config.graded += ", ".join(written)
    if kept := [name for name in public if name not in written]:
        config.graded += f"; the chapter's own: {', '.join(kept)}"
    if set(public) & set(written):
        config.lacking = {name: value for name, value in parts.items()
                          if name not in [*public, *written]}
    config.option.reportchars += "s"  # says why tests are skipped
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"
    replaced = {name: value for name, value in vars(chapter).items()  # constants, too; no imports
                if hasattr(mine, name) and not name.startswith("__")
                and getattr(value, "__module__", chapter.__name__) == chapter.__name__}
    for module in [sys.modules[name] for name in sys.modules if name.split(".")[0] == "minseg"]:
        for name, value in replaced.items():
            if vars(module).get(name) is value:
                setattr(module, name, getattr(mine, name))


def chapter_under_test(arguments, file):
    """The module whose tests are to run."""
    tests = {argument.split("::")[0] for argument in arguments}
    if len(tests) == 1 and not (test := Path(*tests)).exists():
        raise pytest.UsageError(f"{test}: no such file")
    if len(tests) != 1 or not test.is_file():
        raise pytest.UsageError("which chapter? --mine needs one test file: "
                                f"python -m pytest tests/test_scse.py --mine {file}")
    name, chapters = test.stem.removeprefix("test_"), (ROOT / "minseg").glob("[!_]*.py")
    if not test.stem.startswith("test_"):
        raise pytest.UsageError(f"{test}: holds no tests: give tests/test_{name}.py")
    if name not in (names := sorted(path.stem for path in chapters)):
        raise pytest.UsageError(f"{test}: is about no chapter; there are {', '.join(names)}")
    return import_module(f"minseg.{name}")


def skeleton(chapter):
    """What a chapter's exercise "Write it" asks for: signatures and docstrings, without code."""
    asked = chapter.__doc__.partition("*Write it.*")[2].partition("\nNext: ")[0]
    names = re.findall(r"`(\w+)\(", asked)
    tree = ast.parse(Path(chapter.__file__).read_text("utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
                 or getattr(node, "name", None) in names]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[: ast.get_docstring(node) is not None]
            node.body = [*docstring, ast.Raise(ast.Name("NotImplementedError"))]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def run_alone(file):
    """The module that FILE makes, as if it lay in minseg/. An error in it is one line."""
    if not file.is_file():
        raise pytest.UsageError(f"{file}: no such file")
    spec = util.spec_from_file_location("minseg.mine", file)
    mine = sys.modules[spec.name] = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(mine)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == spec.origin] or [getattr(error, "lineno", 1)]
        raise pytest.UsageError(f"{file}:{lines[-1]}: {type(error).__name__}: "
                                f"{getattr(error, 'msg', error)}")
    return mine


def pytest_report_header(config):
    return getattr(config, "graded", None)


def names_in(code):
    """The names that a function and the functions inside it use."""
    inner = [names_in(part) for part in code.co_consts if hasattr(part, "co_names")]
    return set(code.co_names).union(*inner)


def pytest_collection_modifyitems(config, items):
    lacking = getattr(config, "lacking", {})
    for item in items if lacking else ():
        used = [name for name in sorted(names_in(item.function.__code__)) if name in lacking
                and vars(item.module).get(name) is lacking[name]]
        if used:
            reason = f"{config.option.mine} has no {', '.join(used)}"
            item.add_marker(pytest.mark.skip(reason=reason))

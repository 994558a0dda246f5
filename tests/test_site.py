"""The web site that docs/build.py writes: every page is there, and nothing on it leads nowhere."""

import ast
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

import minseg

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "docs" / "build.py"
FIRST = "index.html"


class Read(HTMLParser):
    """What a crawler sees of a page."""

    def __init__(self, html):
        super().__init__()
        self.html, self.ids, self.links, self.rel, self.menu = html, [], [], {}, []
        self.title, self.text, self.code = "", "", ""
        self.open = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        found = [attrs[name] for name in ("href", "src") if name in attrs]
        self.links += found
        if "rel" in attrs:
            self.rel[attrs["rel"]] = found[0]
        self.apart = tag == "h2" or attrs.get("class") == "linenos"
        if tag in ("aside", "section", "nav"):
            self.open.append(attrs.get("id", tag))
        elif found and self.open[-1:] == ["menu"]:
            self.menu += found

    def handle_endtag(self, tag):
        self.apart = False
        if tag in ("aside", "section", "nav"):
            self.open.pop()

    def handle_data(self, data):
        self.code += data if self.open[-1:] == ["aside"] and not self.apart else ""
        self.text += data if self.open[-1:] == ["section"] else ""
        self.title += data if self.lasttag == "title" else ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("pdoc", reason="pdoc renders it: python -m pip install -e '.[docs]'")
    parent = tmp_path_factory.mktemp("site")
    found = subprocess.run([sys.executable, BUILD, "out"], cwd=parent, capture_output=True,
                           text=True)
    assert found.returncode == 0 and not found.stderr, found.stderr
    return parent / "out"


@pytest.fixture(scope="module")
def site(folder):
    """All pages, by their names."""
    return {path.relative_to(folder).as_posix(): Read(path.read_text("utf-8"))
            for path in folder.rglob("*.html")}


def follow(page, link):
    """The file and the fragment that a link of a page leads to."""
    file, _, anchor = link.partition("#")
    return normpath(join(dirname(page), file)) if file else page, anchor


def page_of(source):
    """The page of a file of the repository."""
    name = source.removesuffix("/__init__.py").removesuffix(".py").removesuffix(".md")
    return FIRST if source == "README.md" else f"{name}.html"


def sources():
    """The files that have a page."""
    files = [path for pattern in ("*.md", "*.py", "docs/*.md", "minseg/**/*.py")
             for path in ROOT.glob(pattern)]
    return [path.relative_to(ROOT).as_posix() for path in files
            if path.name != "conftest.py" and path.parent.name != "data"]  # old names only


def reading_order(site):
    """The pages in the order of the links to the next one."""
    pages = [FIRST]
    while "next" in site[pages[-1]].rel and len(pages) <= len(site):
        pages.append(follow(pages[-1], site[pages[-1]].rel["next"])[0])
    return pages


def test_every_link_and_picture_leads_somewhere(site, folder):
    for name, page in site.items():
        for link in page.links:
            if link.startswith(("https://", "http://")):
                continue  # no test goes out into the network
            file, anchor = follow(name, link)
            assert (folder / file).is_file(), (name, link)
            assert not anchor or site[file].ids.count(anchor) == 1, (name, link)


def test_no_page_knows_where_it_was_built(site):
    for name, page in site.items():
        for text in (str(ROOT), "file:///", " at 0x", "data:image"):
            assert text not in page.html, (name, text)
        assert not [link for link in page.links if link.startswith("/")], name


def test_every_chapter_page_and_program_has_a_page_and_is_in_every_menu(site):
    pages = {page_of(source) for source in sources()}
    assert {"minseg/unet.html", "minseg/files/tiff.html", "docs/study.html", "train.html"} < pages
    assert pages == site.keys()
    for name, page in site.items():
        assert {follow(name, link)[0] for link in page.menu} == pages


def test_next_and_previous_follow_the_reading_order_as_the_menu_does(site):
    pages = reading_order(site)
    assert sorted(pages) == sorted(site)
    for before, page in pairwise(pages):
        assert follow(page, site[page].rel["prev"])[0] == before
    assert "prev" not in site[FIRST].rel
    assert pages == [follow(FIRST, link)[0] for link in site[FIRST].menu]
    table = re.findall(r"^\| `minseg\.(\w+)` \|", minseg.__doc__, re.M)
    chapters = [f"minseg/{name}.html" for name in table]
    assert [page for page in pages if page in chapters] == chapters
    later = [pages.index(page) for page in ("minseg/run.html", "docs/study.html", "train.html")]
    assert later == sorted(later) and pages.index("minseg/synthetic.html") < later[0]


def test_every_figure_that_a_source_uses_is_on_its_page(site, folder):
    used = set()
    for source in sources():
        text = (ROOT / source).read_text("utf-8")
        for figure in re.findall(r"figures/[\w/-]+\.(?:png|jpg)(?=[)\"])", text):
            page = page_of(source)
            links = {follow(page, link)[0] for link in site[page].links}
            assert f"docs/{figure}" in links and (folder / "docs" / figure).is_file(), figure
            used.add(figure)
    assert len(used) > 40


def test_a_chapter_has_its_prose_beside_its_code(site):
    for source in sources():
        page = site[page_of(source)]
        if source.endswith(".md"):
            assert not page.code
            continue
        text = (ROOT / source).read_text("utf-8")
        end = ast.parse(text).body[0].end_lineno  # of the docstring
        code = "".join(text.splitlines(True)[end:])
        assert page.code.strip() == code.strip(), source
        first = end + 1 + len(code) - len(code.lstrip("\n"))
        assert f"L-{end}" not in page.ids and (not code or f"L-{first}" in page.ids)


def test_markdown_is_rendered(site):
    for name, page in site.items():
        assert page.title and "<h1" in page.html, name
        assert not re.search(r"<p>\s*[|#>]|<p>[^<]*\*\*[A-Z]|<ol start", page.html), name
    assert "<th>segmentation_models.pytorch</th>" in site["minseg/scse.html"].html
    assert "c      = sigmoid(W2 ReLU(W1 mean(x) + b1) + b2) " in site["minseg/scse.html"].text
    assert '<h2 id="which-labels-are-wrong">' in site["docs/study.html"].html


def test_files_without_a_page_are_named_or_lead_to_the_repository(site):
    assert "<code>tests/test_scse.py</code>" in site[FIRST].html
    spec = importlib.util.spec_from_file_location("docs_build", BUILD)
    build = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build  # dataclasses look there
    try:
        spec.loader.exec_module(build)
    finally:
        del sys.modules[spec.name]
    page = build.Page("docs/audit.md", "docs/audit.html", "Pages", "# Audit")
    web = build.Site([page], "https://example.org/minseg")
    assert web.leads_to(page, "../tests/audit/test_claims.py#L3") == (
        "https://example.org/minseg/blob/HEAD/tests/audit/test_claims.py#L3")
    assert web.leads_to(page, "audit.md#one") == "audit.html#one"
    assert not build.Site([page]).leads_to(page, "../LICENSE")
    assert build.Site([page]).html("[a licence](../LICENSE)", page) == (
        "<p>a licence: <code>LICENSE</code></p>\n")


def test_without_pdoc_one_line_says_what_to_install():
    program = f"import runpy, sys; sys.modules['pdoc'] = None; runpy.run_path({str(BUILD)!r})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr == "pdoc renders the site: python -m pip install -e '.[docs]'\n"

"""Writes the web site: the README, then the chapters in the order of the table in
`minseg/__init__.py`, the pages of docs/, and the programs.

    python docs/build.py             into site/
    python docs/build.py FOLDER      elsewhere

pdoc reads the code and renders Markdown; docs/pdoc/ holds the template and the style.
"""

import argparse
import ast
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

try:
    import jinja2
    import pdoc
    import pygments
    from markupsafe import Markup
    from pygments.formatters import HtmlFormatter
except ImportError:
    sys.exit("pdoc renders the site: python -m pip install -e '.[docs]'")

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Page:
    """A page of the site, made of one file of the repository."""

    source: str  # the file, in the repository: minseg/unet.py
    file: str  # the page, in the site: minseg/unet.html
    group: str  # its part of the menu
    text: str  # Markdown; begins with the title
    module: pdoc.doc.Module | None = None

    @property
    def title(self) -> str:
        return self.text.partition("\n")[0].removeprefix("# ").replace("`", "")

    @property
    def label(self) -> str:
        """Its name in the menu: the title up to a comma or colon, or the file in a room."""
        source = Path(self.source)
        in_room = self.group == f"minseg.{source.parent.name}"
        return source.name if in_room else re.split("[:,]", self.title)[0]

    def to(self, file: str) -> str:
        """The link from this page to a file of the site."""
        return relpath(file, dirname(self.file) or ".")


def code_page(name: str, group: str) -> Page:
    """The page of a module."""
    module = pdoc.doc.Module.from_name(name)
    source = Path(module.obj.__file__).resolve().relative_to(ROOT).as_posix()
    title = "" if module.docstring.startswith("# ") else f"# {source}\n\n"
    file = f"{name.replace('.', '/')}.html"
    return Page(source, file, group, title + module.docstring, module)


def listed(package: str) -> list[str]:
    """The modules in the table of a package's docstring, in its order."""
    text = pdoc.doc.Module.from_name(package).docstring
    return re.findall(rf"^\| `({package}\.\w+)` \|", text, re.M)


def reading_order() -> list[Page]:
    """All pages. The pages of docs/ have the order in which the README lists them."""
    readme = (ROOT / "README.md").read_text("utf-8")
    pages = [Page("README.md", "index.html", "", readme), code_page("minseg", "")]
    for name in listed("minseg"):
        inner = listed(name)  # a room has a table of its own
        pages += [code_page(module, name if inner else "Chapters") for module in (name, *inner)]
    texts = sorted((ROOT / "docs").glob("*.md"), key=lambda path: readme.find(f"docs/{path.name}"))
    for path in (*texts, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        source = path.relative_to(ROOT)
        pages.append(Page(source.as_posix(), source.with_suffix(".html").as_posix(), "Pages",
                          path.read_text("utf-8")))
    programs = "tutorial", "train", "infer", "labels"
    return pages + [code_page(name, "Programs") for name in programs]


def code_of(page: Page) -> Markup:
    """The code below a module's docstring, with the line numbers of the file."""
    text = (ROOT / page.source).read_text("utf-8")
    rest = "".join(text.splitlines(True)[ast.parse(text).body[0].end_lineno:]).lstrip("\n")
    look = HtmlFormatter(linenos="inline", linespans="L", cssclass="source",
                         linenostart=text.count("\n") - rest.count("\n") + 1)
    html = pygments.highlight(rest, pdoc.render_helpers.lexer, look) if rest else ""
    number = r'(<span id="L-\d+")(><span class="linenos">[^<]*</span>(?:<span class="\w+">)?( *))'
    return Markup(re.sub(number, lambda line: (  # the style needs to know how far a line is in
        f'{line[1]} style="--indent: {len(line[3])}ch"{line[2]}'), html))


class Site:
    """All pages. Links to files without a page lead to `repository`, an address on the web, if
    there is one."""

    def __init__(self, pages: list[Page], repository: str = ""):
        self.pages, self.repository = pages, repository
        self.file_of = {page.source: page.file for page in pages}

    def leads_to(self, page: Page, link: str) -> str:
        """Where a link in the source of a page leads from the page; empty if nowhere."""
        path, hash_, anchor = link.partition("#")
        if not path or re.match(r"\w+:", link):
            return link
        path = normpath(join(dirname(page.source), path))
        if path in self.file_of or path.startswith("docs/figures/"):
            return page.to(self.file_of.get(path, path)) + hash_ + anchor
        return f"{self.repository}/blob/HEAD/{path}{hash_}{anchor}" if self.repository else ""

    def html(self, text: str, page: Page) -> Markup:
        """The Markdown of a page as HTML, with the links of the site."""
        def link(found: re.Match) -> str:
            if target := self.leads_to(page, found[1]):
                return f'<a href="{target}">{found[2]}</a>'
            path = normpath(join(dirname(page.source), found[1]))
            label = "" if re.sub("<.*?>", "", found[2]) in path else f"{found[2]}: "
            return f"{label}<code>{path}</code>"

        def picture(found: re.Match) -> str:
            target = self.leads_to(page, found[1])
            shown = f'<img src="{target}"{found[2]}>'
            return shown if "width=" in found[2] else f'<a href="{target}">{shown}</a>'

        def listing(found: re.Match) -> str:
            target = self.leads_to(page, found[2]) if found[2] in self.file_of else ""
            return f'{found[1]}<a href="{target}">{found[2]}</a>' if target else found[0]

        # "600. In runs ..." at the start of a line begins a list for markdown2 alone.
        text = pdoc.render_helpers.to_html(re.sub(r"(?m)^( *\d\d+)\. ", r"\1\. ", text))
        text = re.sub(r'<a href="([^"]*)"[^>]*>(.*?)</a>', link, text, flags=re.S)
        text = re.sub(r"(?m)^((?:<[^>]*>)*)([\w/]+\.(?:py|md))(?=  )", listing, text)
        return Markup(re.sub(r'<img src="([^"]*)"([^>]*)>', picture, text))

    def write(self, folder: Path) -> None:
        """Writes the pages, the pictures and the style."""
        pdoc.render.configure(include_undocumented=False, show_source=False, search=False,
                              template_directory=ROOT / "docs/pdoc")
        pdoc.render.env.filters["to_html"] = jinja2.pass_context(
            lambda context, text: self.html(text, context["page"]))
        template = pdoc.render.env.get_template("module.html.jinja2")
        modules = {page.module.modulename: page.module for page in self.pages if page.module}
        for before, page, after in zip([None, *self.pages], self.pages, [*self.pages[1:], None]):
            with pdoc.render_helpers.defuse_unsafe_reprs():
                text = template.render(
                    page=page, pages=self.pages, before=before, after=after, module=page.module,
                    all_modules=modules, code=page.module and code_of(page))
            (folder / page.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / page.file).write_text(text, "utf-8")
        shutil.copyfile(ROOT / "docs/pdoc/style.css", folder / "style.css")
        shutil.copytree(ROOT / "docs/figures", folder / "docs/figures", dirs_exist_ok=True)


def main() -> None:
    """Reads the command line and builds the site."""
    parser = argparse.ArgumentParser(description="Writes the web site.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "site")
    folder = parser.parse_args().folder
    sys.path.insert(0, str(ROOT))  # this clone's minseg, wherever another is installed
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    address = re.search(r'^"?(?:Repository|Source)"? = "(.+?)/?"$', project, re.M | re.I)
    site = Site(reading_order(), address[1] if address else "")
    site.write(folder)
    print(f"{len(site.pages)} pages: {folder / 'index.html'}")


if __name__ == "__main__":
    main()

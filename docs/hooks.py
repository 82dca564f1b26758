"""What MkDocs calls while it builds the site: formulas, figures in narrow cells, and files outside of docs/.

A link may leave docs/, as it does on a code host: the file that it names becomes part of the site.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from posixpath import normpath, relpath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "index.md": "README.md",
    "reference/contributing.md": "CONTRIBUTING.md",
    "reference/security.md": "SECURITY.md",
    "reference/changelog.md": "CHANGELOG.md",
}
OF_PAGES = {name: uri for uri, name in PAGES.items()}
FROM_ROOT = re.compile(r"(?<=\]\()(?P<path>[\w./-]+)(?=[)#])")  # no address of another host
LINK = re.compile(r"(?<=\]\()(?P<path>\.\./[^)#\s]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
FIGURES = re.compile(r"<!-- figures: [\w ,]+ -->\n(.*?)<!-- end -->", re.DOTALL)  # see docs/tables.py


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and each file outside of docs/ that a page links to, under its own path."""
    for uri, name in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=FROM_ROOT.sub(partial(_from_docs, uri), text)))
    outside = {path for page in files.documentation_pages() for path in _outside(page)}
    for path in sorted(outside - set(PAGES.values())):
        if (ROOT / path).is_file():  # a link to what is not there is left, and reported as such
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put tables of figures into their division, and lead the links that leave docs/ to the copies in the site."""
    here = page.file.src_uri

    def inside(match: re.Match[str]) -> str:
        path = _in_repository(here, match["path"])
        if path is None:
            return match["path"]
        return relpath(OF_PAGES.get(path, path), Path(here).parent.as_posix())

    narrow = FIGURES.sub(r'<div class="figures" markdown>\n\n\1\n</div>', markdown)
    return LINK.sub(inside, narrow)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers draw without a script."""
    return FORMULA.sub(_formula, html)


def _formula(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    text = match[3].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    return convert(text, display=display)


def _from_docs(uri: str, match: re.Match[str]) -> str:
    """Rewrite a link of a page at the repository's root to where the site has that page."""
    path = match["path"]
    here = OF_PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}")
    return relpath(here, Path(uri).parent.as_posix())


def _outside(page: File) -> Iterator[str]:
    for match in LINK.finditer(page.content_string):
        if path := _in_repository(page.src_uri, match["path"]):
            yield path


def _in_repository(page: str, link: str) -> str | None:
    """Return the path from the root of the repository of a link that leaves docs/; None of one that does not."""
    path = normpath(Path("docs", page).parent.joinpath(link).as_posix())
    return None if path.startswith(("docs/", "..")) else path

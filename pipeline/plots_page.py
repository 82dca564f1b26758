"""`python -m pipeline.plots_page`: have `dvc plots show` and `dvc plots diff` write pages that need no connection.

DVC's own page loads its chart library from the web. This writes a page template that holds the library, of the versions
in a pinned package, into .dvc/plots.html, and names it in .dvc/config.local. Neither file is in Git: DVC fails on a
template that is named but missing, so a clone without them has DVC's own page.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_render.html import PAGE_HTML

from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser
from pipeline.core.errors import UserError, exit_on_error, first_line

PROGRAM = "python -m pipeline.plots_page"
NAME = "plots.html"  # DVC looks for it in its own folder
VEGA_LITE = "5.20"  # DVC's plots are written for 5


def main(words: Sequence[str] | None = None) -> None:
    """Write the template of this repository and have DVC use it.

    Raises:
        SystemExit: with exit code 2, if there is no repository of DVC's here or the library is not installed.
    """
    Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(words)
    with exit_on_error("stopped", PROGRAM):
        path = install(page())
        console.line(f"plots: {path} holds the chart library; dvc plots show writes pages that need no connection")


def page() -> str:
    """Return DVC's own page with the library in place of the addresses of it.

    Raises:
        UserError: if the package that holds the library is not installed.
    """
    try:
        import vl_convert
    except ModuleNotFoundError:
        line = "plots: vl-convert-python is not installed; install it with: pip install 'lsr-adapt[plots]'"
        raise UserError(line) from None
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg] # its stub asks for a snippet
    script = f'<meta charset="utf-8">\n<script>(() => {{ "use strict"; {bundle} }})();</script>'
    return PAGE_HTML.replace("{scripts}", script)


def install(template: str) -> Path:
    """Write the template, name it in the local configuration, and return its path.

    Raises:
        UserError: if DVC finds no repository here, or cannot write its configuration.
    """
    try:
        repository = Repo()
        path = Path(repository.dvc_dir, NAME)
        with artifacts.replacing(path) as temporary:
            temporary.write_text(template, encoding="utf-8")
        with repository.config.edit("local") as changed:
            changed.setdefault("plots", {})["html_template"] = NAME
    except DvcException as error:
        raise UserError(f"plots: {first_line(error)}") from None
    return path


if __name__ == "__main__":
    main()

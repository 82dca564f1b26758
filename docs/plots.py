"""Write DVC's page of plots with the chart library inside it: `make plots` has DVC fill it, and it opens offline."""

from pathlib import Path

from dvc_render.html import PAGE_HTML
from vl_convert import javascript_bundle

from pipeline.core.console import Parser

TEMPLATE = Path("dvc_plots", "template.html")
VEGA_LITE = "5.20"  # DVC's plots are written for 5


def main() -> None:
    """Write the template, in which DVC finds no place for the addresses of the library."""
    library = javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg] # its stub asks for a snippet
    script = f'<meta charset="utf-8">\n<script>(() => {{ "use strict"; {library} }})();</script>'
    TEMPLATE.parent.mkdir(exist_ok=True)
    TEMPLATE.write_text(PAGE_HTML.replace("{scripts}", script), encoding="utf-8")


if __name__ == "__main__":
    about = (
        "Write the template of DVC's page of plots with the chart library inside it, so that `make plots` makes a "
        "page that opens offline."
    )
    with Parser("python -m docs.plots", about).parse():
        main()

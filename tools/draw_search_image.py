"""Draw the page that `dimvl search --html` wrote, for the README: each query and the images found.

python tools/draw_search_image.py found.html docs/images/search.png
"""

import argparse
import base64
import io
import textwrap
from html.parser import HTMLParser
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from dimvl.files import read_text


class Page(HTMLParser):
    """The queries of a page, each with the images found and what is written under them.

    Attributes:
        queries: (query, [(image, lines)]) in the order of the page.

    """

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[tuple[str, list[tuple[Image.Image, list[str]]]]] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a query, an image or its caption."""
        self._inside = tag if tag in ("h2", "figcaption", "b", "br") else ""
        if tag == "h2":
            self.queries.append(("", []))
        if tag == "img":
            encoded = (dict(attrs)["src"] or "").partition(",")[2]
            self.queries[-1][1].append((Image.open(io.BytesIO(base64.b64decode(encoded))), []))

    def handle_endtag(self, tag: str) -> None:
        """End the text of a tag."""
        self._inside = ""

    def handle_data(self, data: str) -> None:
        """Collect the text of a query or of the caption of an image."""
        if self._inside == "h2":
            self.queries[-1] = (self.queries[-1][0] + data, self.queries[-1][1])
        elif self._inside and data.strip():
            self.queries[-1][1][-1][1].append(" ".join(data.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    page = Page()
    page.feed(read_text(arguments.page))
    columns = max(len(found) for _, found in page.queries)
    figure = Figure(figsize=(2.4 * columns, 3.1 * len(page.queries)), layout="constrained")
    parts = figure.subfigures(len(page.queries), 1, squeeze=False)[:, 0]
    for part, (query, found) in zip(parts, page.queries, strict=True):
        part.suptitle(textwrap.fill(query, 32 * columns), fontsize=10, x=0.01, ha="left", family="monospace")
        for axis, (image, lines) in zip(part.subplots(1, columns, squeeze=False)[0], found, strict=False):
            axis.imshow(image)
            axis.set_title("\n".join(lines), fontsize=8)
            axis.set_axis_off()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=75, metadata={"Software": None})


if __name__ == "__main__":
    main()

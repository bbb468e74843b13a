"""Write docs/api.md from the code, so that the page always agrees with it.

python tools/write_api_docs.py
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dimvl
from dimvl.data.answers import Answer, Chosen
from dimvl.encoding import Encoding
from dimvl.explanation import Alignment, Explanation, Grounding, RegionDrop
from dimvl.predictor import Predictor
from dimvl.regions.records import Regions
from dimvl.regions.store import RegionStore

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """\
# Python

`tools/write_api_docs.py` writes this page from the code; after changing a public method, run it again.

`import dimvl` offers {names}. Docstrings say more: `help(dimvl.Predictor.answer)`.

An image is a path, an address, the `bytes` of a file, an open binary file, a PIL image, a numpy array (H, W, 3) or a
torch tensor (3, H, W) of uint8 or of floats from 0 to 1, or its `Regions`. An address is a text that begins with
`http://` or `https://`: at most 64 MiB, in 30 seconds and over 3 redirections; a server must not pass on a text of a
request. A tuple of images is one input; a list of inputs is a batch, and gives a list of results.

`encode` and `embed_image` differ: `encode` gives the rows of the last layer, of any model, for the image and for each
region; `embed_image` gives one unit vector in a space shared with texts, of a model that was trained to align.
"""
OPENING = """
```python
from dimvl import Predictor

predictor = Predictor.from_pretrained("exports/vqa")  # or "owner/name", and revision="v1"
print(predictor.answer("photo.jpg", "what is on the table?").text)
vectors = predictor.encode("photo.jpg")  # vectors.image (D,), vectors.regions (R, D)
predictor.draw("photo.jpg").save("regions.png")
```
"""
RESULTS = (Answer, Chosen, Explanation, RegionDrop, Alignment, Grounding, Encoding, Regions)


def page() -> str:
    """Return the whole page."""
    names = ", ".join(f"`{name}`" for name in sorted(dimvl.__all__))
    lines = [HEAD.format(names=names), OPENING.strip("\n"), ""]
    for kind in (Predictor, RegionStore):
        lines += [f"## {kind.__name__}", "", _first(kind), "", "| call | |", "|---|---|", *_methods(kind), ""]
    signature = _signature(dimvl.load_model)
    lines += [
        "## Functions",
        "",
        "| call | |",
        "|---|---|",
        f"| `load_model{signature}` | {_first(dimvl.load_model)} |",
        "",
    ]
    lines += ["## Results", "", "| type | fields | |", "|---|---|---|"]
    for kind in RESULTS:
        fields = getattr(kind, "_fields", None) or getattr(kind, "__dataclass_fields__", {})
        shown = ", ".join(f"`{name}`" for name in fields if not name.startswith("_"))
        lines.append(f"| `{kind.__name__}` | {shown} | {_first(kind)} |")
    return "\n".join(lines) + "\n"


def _methods(kind: type) -> Iterator[str]:
    for name in sorted(dir(kind)):
        value = inspect.getattr_static(kind, name)
        if name.startswith("_") or not (inspect.isroutine(value) or isinstance(value, property | classmethod)):
            continue
        call = name if isinstance(value, property) else f"{name}{_signature(getattr(kind, name))}"
        yield f"| `{call}` | {_first(value.fget if isinstance(value, property) else getattr(kind, name))} |"


def _signature(function: Any) -> str:
    """Return the parameters of a function with their defaults, without types."""
    parameters = [
        one.replace(annotation=one.empty)
        for one in inspect.signature(function).parameters.values()
        if one.name not in ("self", "cls")
    ]
    return re.sub(r"<built-in function (\w+)>", r"\1", str(inspect.Signature(parameters)))


def _first(value: Any) -> str:
    """Return the first sentence of a docstring, for a cell of a table."""
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.;])\s", paragraph)[0].rstrip(".;").replace("|", "\\|") + "."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

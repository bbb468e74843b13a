"""Draw the image of the README from a finished demo: regions and tags, caption, answers.

python tools/draw_demo_image.py runs/demo docs/images/demo.png
"""

import argparse
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from dimvl.demo.config import DemoPaths
from dimvl.drawing import draw_regions
from dimvl.files import read_json
from dimvl.regions.images import load_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--example", type=int, default=0)
    arguments = parser.parse_args()
    places = DemoPaths(arguments.demo)
    example = read_json(places.scores / "examples.json")[arguments.example]
    image = load_image(places.scenes / "heldout" / "images" / example["picture"])
    regions = example["questions"][0]["regions"]
    labels = [" ".join([*region["attributes"], region["name"]]) for region in regions]
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    left.imshow(draw_regions(image, [tuple(region["box"]) for region in regions], labels))
    left.set_axis_off()
    right.set_axis_off()
    lines = [*textwrap.wrap(f"“{example['caption']}”", 52), ""]
    for question in example["questions"]:
        answer, probability = question["answers"][0]
        mark = "right" if answer == question["expected"] else f"wrong: {question['expected']}"
        lines += [*textwrap.wrap(question["question"], 52), f"    {answer}   {probability:.2f}   ({mark})"]
    lines += ["", "synthetic scene, held-out split"]
    right.text(0, 1, "\n".join(lines), va="top", family="monospace", fontsize=9.5)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()

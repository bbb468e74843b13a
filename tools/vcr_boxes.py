"""Write the boxes of VCR's images for `dimvl extract --boxes`, named as dimvl's questions name them.

python tools/vcr_boxes.py boxes.json vcr1images train.jsonl val.jsonl test.jsonl
"""

import argparse
from pathlib import Path

from dimvl.data.annotations.vcr import vcr_boxes
from dimvl.files import write_json


def main() -> None:
    """Write one COCO file for all annotation files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("annotations", type=Path, nargs="+")
    arguments = parser.parse_args()
    write_json(arguments.out, vcr_boxes(arguments.annotations, arguments.images), indent=None)


if __name__ == "__main__":
    main()

"""Small annotation files of every format, written by hand after the official ones; all say the same four captions."""

import json
from pathlib import Path

COCO = {
    "info": {"description": "hand-written"},
    "images": [
        {"id": 9, "file_name": "COCO_val2014_000000000009.jpg"},
        {"id": 12, "file_name": "COCO_train2014_000000000012.jpg"},
    ],
    "annotations": [
        {"id": 3, "image_id": 12, "caption": "a red star"},
        {"id": 1, "image_id": 9, "caption": "two blue circles, one small"},
        {"id": 2, "image_id": 9, "caption": 'a "sign" | with words\n'},
        {"id": 4, "image_id": 12, "caption": "ein großer Würfel"},
    ],
}
KARPATHY = {
    "images": [
        {
            "filepath": "train2014",
            "filename": "COCO_train2014_000000000012.jpg",
            "imgid": 0,
            "split": "train",
            "cocoid": 12,
            "sentences": [
                {"tokens": ["a", "red", "star"], "raw": "a red star", "imgid": 0, "sentid": 3},
                {"tokens": [], "raw": "ein großer Würfel", "imgid": 0, "sentid": 4},
            ],
        },
        {
            "filepath": "val2014",
            "filename": "COCO_val2014_000000000009.jpg",
            "imgid": 1,
            "split": "restval",
            "cocoid": 9,
            "sentences": [
                {"tokens": [], "raw": "two blue circles, one small", "imgid": 1, "sentid": 1},
                {"tokens": [], "raw": 'a "sign" | with words\n', "imgid": 1, "sentid": 2},
            ],
        },
    ],
    "dataset": "coco",
}
IMAGES = ("1000092795.jpg", "10002456.jpg")
TEXTS = ("a red star", "two blue circles, one small", 'a "sign" | with words', "ein großer Würfel")
TOKEN = f"{IMAGES[0]}#0\t{TEXTS[0]}\n{IMAGES[0]}#1\t{TEXTS[1]} \n{IMAGES[1]}#0\t{TEXTS[2]}\n{IMAGES[1]}#1\t{TEXTS[3]}\n"
BARS = (
    f"image_name| comment_number| comment\n{IMAGES[0]}| 0| {TEXTS[0]}\n{IMAGES[0]}| 1| {TEXTS[1]}\n"
    f"{IMAGES[1]}| 0| {TEXTS[2]}\n{IMAGES[1]}| 1   {TEXTS[3]}\n"
)
COMMAS = (
    f"image_name,comment_number,comment\n{IMAGES[0]},0,{TEXTS[0]}\n"
    f'{IMAGES[0]},1,{TEXTS[1]}\n{IMAGES[1]},0,"a ""sign"" | with words"\n{IMAGES[1]},1,{TEXTS[3]}\n'
)
SHORT_COMMAS = (
    f'image,caption\n{IMAGES[0]},{TEXTS[0]}\n{IMAGES[0]},"{TEXTS[1]}"\n'
    f'{IMAGES[1]},"a ""sign"" | with words"\n{IMAGES[1]},{TEXTS[3]}\n'
)
CONCEPTUAL = "".join(f"{text}\tcc/{image}\n" for text, image in zip(TEXTS, sorted(IMAGES * 2), strict=True))
LINES = "".join(
    json.dumps({"image": image, "caption": text}) + "\n" for text, image in zip(TEXTS, sorted(IMAGES * 2), strict=True)
)
QUESTIONS = {
    "data_type": "mscoco",
    "data_subtype": "train2014",
    "questions": [
        {"question_id": 5, "image_id": 12, "question": "what colour?"},
        {"question_id": 6, "image_id": 9, "question": "how many? "},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {
            "question_id": 6,
            "image_id": 9,
            "question_type": "how many",
            "answer_type": "number",
            "answers": [{"answer": "2", "answer_confidence": "yes", "answer_id": 1}],
        },
        {
            "question_id": 5,
            "image_id": 12,
            "question_type": "what",
            "answer_type": "other",
            "answers": [{"answer": answer} for answer in ("red", "red", "dark red")],
        },
    ]
}
QUESTION_LINES = (
    '{"image": 12, "question": "what colour?", "answers": ["red", "red", "dark red"], "answer_type": "other"}\n'
    '{"image": "9", "question": "how many?", "answer": "2", "question_id": 6}\n'
)
SEVERAL_LINES = (
    '{"images": [12, "a b.jpg"], "question": "which is redder?", "times": [0, 2.5], "answer": "12"}\n'
    '{"images": ["9"], "question": "how many?", "times": [1e3], "answers": ["2"]}\n'
)

CAPTION_FILES = {
    "coco.json": json.dumps(COCO),
    "karpathy.json": json.dumps(KARPATHY),
    "results.token": TOKEN,
    "results.csv": BARS,
    "captions.txt": COMMAS,
    "short.csv": SHORT_COMMAS,
    "conceptual.tsv": CONCEPTUAL,
    "own.jsonl": LINES,
}
SPLITS = {"karpathy.json": ("train", "restval")}
"""Splits that must be named to read a file."""


def write(path: Path, content: object) -> Path:
    """Write text, bytes, or a value as JSON."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path

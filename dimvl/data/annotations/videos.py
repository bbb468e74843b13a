"""Captions of videos: MSR-VTT (Xu et al., CVPR 2016) and ActivityNet Captions (Krishna et al., ICCV 2017).

`MSRVTT_data.json` is `{"sentences": [{"video_id", "caption"}, ...], "videos": [{"video_id", "split"}, ...]}`; the split
1k-A (Yu et al., ECCV 2018) has a CSV file of its training videos and one of its test sentences. ActivityNet Captions
are `{video: {"duration", "timestamps": [[start, end], ...], "sentences": [...]}}`; all sentences of a video are one
text, a paragraph, as in paragraph retrieval. The name of a video leads to its frames: `dimvl/regions/frames.py`.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError
from dimvl.fields import Id, Once, identifier, items, label, lines, mapping, records, words
from dimvl.files import inside
from dimvl.regions.frames import video_name
from dimvl.showing import short

ONE_K = ("key", "video_id", "sentence")
"""The columns of MSRVTT_JSFUSION_test.csv that are read; `vid_key` is `key` in other words."""


def is_msrvtt(content: Any) -> bool:
    """Whether a file has a list of sentences, as MSR-VTT's."""
    return isinstance(content, dict) and isinstance(content.get("sentences"), list)


def is_activitynet(content: Any) -> bool:
    """Whether the first value of a file has sentences with their times."""
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and {"sentences", "timestamps"} <= first.keys()


def msrvtt_captions(path: Path, content: Any, split: Sequence[str]) -> list[Caption]:
    """Read the captions of MSR-VTT, in the order of the file.

    Args:
        path: for messages.
        content: the file's JSON value.
        split: names of splits, or CSV files beside this one with a column `video_id`; empty for all videos.

    Raises:
        UserError: another format, an empty caption, an unknown split, or a sentence of a video that is not listed.

    """
    wanted = _wanted(path, content, split)
    result = []
    for number, (place, record) in enumerate(records(path, content, "sentences", ("video_id", "caption"))):
        video = identifier(record["video_id"], "video_id", place)
        if wanted is None or video_name(str(video)) in wanted:
            sentence = identifier(record["sen_id"], "sen_id", place) if "sen_id" in record else number
            result.append(_caption(sentence, video, words(record["caption"], f"caption of video {video}", place)))
    once = Once("sen_id")
    for caption in result:
        once.check(caption.caption_id, str(path))
    return result


def one_k_captions(path: Path) -> list[Caption]:
    """Read the test sentences of the split 1k-A, one of each video.

    Raises:
        UserError: not valid CSV, a missing column, an empty sentence, or a duplicate key.

    """
    once, result = Once("key"), []
    for place, row in csv_rows(path, ONE_K):
        key, video = identifier(row["key"], "key", place), identifier(row["video_id"], "video_id", place)
        once.check(key, place)
        result.append(_caption(key, video, words(row["sentence"], f"sentence of video {video}", place)))
    return result


def activitynet_captions(path: Path, content: Any) -> list[Caption]:
    """Read a paragraph of each video: its sentences, joined in the order of the file.

    Raises:
        UserError: a missing field, no sentence, or other numbers of sentences and timestamps.

    """
    result = []
    for number, (name, value) in enumerate(content.items()):
        place = f"{path}: video {short(name)}"
        record = mapping(value, ("sentences", "timestamps"), place)
        sentences, times = (items(record[field], field, place) for field in ("sentences", "timestamps"))
        if len(sentences) != len(times):
            raise UserError(f"{place} has {len(sentences)} sentences and {len(times)} timestamps; give one of each")
        text = " ".join(label(sentence, "a sentence", place).strip() for sentence in sentences)
        result.append(_caption(number, identifier(name, "video", place), words(text, "the paragraph", place)))
    return result


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place and values of each row of a CSV file with a header.

    Raises:
        UserError: not valid CSV, or a column is missing or empty.

    """
    reader = csv.DictReader((content + "\n" for _, content in lines(path)), strict=True)
    try:
        if lacking := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise UserError(f"{path} has no column {lacking[0]!r}; give a file with the columns {', '.join(columns)}")
        for row in reader:
            place = f"{path}, row {reader.line_num}"
            if None in row or any(not row[name] for name in columns):
                raise UserError(f"{place} does not have one value per column; fix it, and quote texts with commas")
            yield place, row
    except csv.Error as error:
        raise UserError(f"{path}, row {reader.line_num} is not valid CSV ({error}); fix its quotes") from None


def _caption(number: Id, video: Id, text: str) -> Caption:
    return Caption(number, (video_name(str(video)),), text, written_ids=(video,), is_video=True)


def _wanted(path: Path, content: Any, split: Sequence[str]) -> set[str] | None:
    """Return the names of the videos of some splits; None for all."""
    listed = list(records(path, content, "videos", ("video_id", "split"))) if content.get("videos") else []
    counts = Counter(str(record["split"]) for _, record in listed)
    known = ", ".join(f"{name} ({count:,} videos)" for name, count in sorted(counts.items())) or "none"
    if not split:
        if len(counts) > 1:
            raise UserError(f"{path} has the splits {known}; choose with `split`")
        return None
    found = {video_name(str(record["video_id"])) for _, record in listed if str(record["split"]) in split}
    for name in split:
        if name.lower().endswith(".csv"):
            found |= {video_name(row["video_id"]) for _, row in csv_rows(inside(path.parent, name), ("video_id",))}
        elif name not in counts:
            raise UserError(f"{path} has no split {name!r}, only {known}; name one of these, or a CSV file beside it")
    return found

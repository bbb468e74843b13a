"""Stories of VIST, and captions of videos of MSR-VTT and ActivityNet."""

import copy
import json

import pytest

from dimvl.data.annotations import compared, read_captions, read_questions
from dimvl.errors import UserError
from tests.data.annotations.files import write
from tests.data.annotations.stories import ACTIVITYNET, MSRVTT, NINE_K, ONE_K, STORIES, VIST, vist_file


def test_the_sentences_of_a_story_are_one_text_about_its_photographs_in_its_order(tmp_path):
    shuffled = copy.deepcopy(VIST)
    shuffled["annotations"].reverse()
    records = read_captions(write(tmp_path / "sis.json", shuffled))
    assert {(r.caption_id, r.album, r.image_ids, r.text) for r in records} == {
        (str(story), str(album), tuple(map(str, photos)), " ".join(texts))
        for story, (album, photos, texts) in STORIES.items()
    }
    assert all(record.named_images == (record.image_ids, ()) for record in records)


def test_all_stories_of_an_album_are_compared_with_one(tmp_path):
    groups = compared(read_captions(write(tmp_path / "sis.json", VIST)))
    assert [[story.caption_id for story in group] for group in groups] == [["30", "31"], ["40"]]


def test_an_album_without_a_story_is_counted(tmp_path, caplog):
    assert len(read_captions(write(tmp_path / "sis.json", vist_file(STORIES, [5, 6, 7, 8])))) == 3
    assert "2 of 4 albums have no story and are left out, such as '7' and 1 others" in caplog.text


def changed(**changes):
    """The file of stories with another second sentence."""
    content = copy.deepcopy(VIST)
    content["annotations"][1][0].update(changes)
    return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            changed(worker_arranged_photo_order=0),
            r"story 30 has sentences at the places \[0, 0, 2, 3, 4\]; give one at",
        ),
        (changed(worker_arranged_photo_order=7), r"story 30 has sentences at the places \[0, 2, 3, 4, 7\]"),
        (changed(worker_arranged_photo_order=-1), "item 1 of 'annotations': worker_arranged_photo_order is -1; give"),
        (changed(photo_flickr_id="11"), "story 30: photo_flickr_id '11' appears twice; remove or renumber one"),
        (changed(album_id="6"), "item 1 of 'annotations': story 30 is in album 6 and in album 5; give each its own id"),
        (changed(text=" "), "item 1 of 'annotations': text of story 30 is empty"),
        (changed(text=None), "item 1 of 'annotations': text of story 30 is None, not text"),
        ({"annotations": [[{"text": "a"}]]}, "item 0 of 'annotations' has no field 'story_id'"),
        ({"annotations": [[], []]}, "item 0 of 'annotations' has 0 sentences; write a list of one sentence each"),
        ({"annotations": [[3]]}, "item 0 of 'annotations' is not a JSON object"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_mistake_in_a_file_of_stories_is_one_sentence_with_its_place(tmp_path, content, says):
    with pytest.raises(UserError, match=rf"sis\.json: {says}") as caught:
        read_captions(write(tmp_path / "sis.json", content))
    assert "\n" not in str(caught.value)


def read_videos(path, split=()):
    records = read_captions(path, split)
    assert all(record.is_video and record.named_images == (record.written_ids, ()) for record in records)
    return [(record.caption_id, record.image_id, record.text) for record in records]


def test_captions_of_msr_vtt_are_read_by_split_or_by_a_list_of_videos_beside_them(tmp_path):
    path = write(tmp_path / "MSRVTT_data.json", MSRVTT)
    write(tmp_path / "MSRVTT_train.9k.csv", NINE_K)
    car, man, red = (7, "video0", "a car is shown"), (8, "video1", "a man talks"), (9, "video0", "a red car")
    assert read_videos(path, ["train"]) == [car, red]
    assert read_videos(path, ["train", "validate"]) == [car, man, red]
    assert read_videos(path, ["MSRVTT_train.9k.csv"]) == [man]
    bare = write(tmp_path / "bare.json", {"sentences": [{"video_id": "video0.mp4", "caption": "a car"}]})
    assert read_videos(bare) == [(0, "video0", "a car")]


def test_the_test_sentences_of_1k_a_and_paragraphs_of_activitynet_are_read(tmp_path):
    assert read_videos(write(tmp_path / "MSRVTT_JSFUSION_test.csv", ONE_K)) == [
        ("ret0", "video0", "a person, on a horse"),
        ("ret1", "video1", "a dog"),
    ]
    paragraph = "A young woman is seen standing in a room. She dances."
    assert read_videos(write(tmp_path / "val_1.json", ACTIVITYNET)) == [
        (0, "v_QOlSCBRmfWY", paragraph),
        (1, "v_ehGHCYKzyZ8", "The video starts."),
    ]


@pytest.mark.parametrize(
    ("content", "split", "says"),
    [
        (MSRVTT, (), r"has the splits train \(1 videos\), validate \(1 videos\); choose with `split`"),
        (MSRVTT, ("test",), r"has no split 'test', only train \(1 videos\), validate \(1 videos\); name one"),
        (MSRVTT, ("none.csv",), r"none\.csv does not exist; check the path"),
        (MSRVTT, ("../none.csv",), r"none\.csv is outside the folder"),
        (MSRVTT | {"sentences": [{"video_id": "v"}]}, ("train",), "item 0 of 'sentences' has no field 'caption'"),
        (
            MSRVTT | {"sentences": [MSRVTT["sentences"][0]] * 2},
            ("train",),
            "sen_id 7 appears twice",
        ),
        ({"v_a": {"timestamps": [[0, 1]], "sentences": ["a", "b"]}}, (), "has 2 sentences and 1 timestamps; give one"),
        ({"v_a": {"timestamps": [], "sentences": []}}, (), "video 'v_a': the paragraph is empty"),
        ({"v_a": {"timestamps": [0], "sentences": [3.5]}}, (), "a sentence is 3.5, not text"),
        ({"v_a": {"timestamps": [0], "sentences": ["a"]}, "v_b": {}}, (), "video 'v_b' has no field 'sentences'"),
        (ACTIVITYNET, ("val",), "has no splits, but split is val; remove it"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_in_a_file_of_videos_is_one_sentence(tmp_path, content, split, says):
    with pytest.raises(UserError, match=says) as caught:
        read_captions(write(tmp_path / "videos.json", content), split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("ret0,msr,video0", r"row 2 does not have one value per column; fix it"),
        ("ret0,msr,video0,a man, talking", r"row 2 does not have one value per column"),
        ("ret0,msr,video0,a man\nret0,msr,video1,a dog", r"row 3: key 'ret0' appears twice"),
        ('ret0,msr,video0,"a man', r"row 1 is not valid CSV"),
    ],
)
def test_a_mistake_in_a_csv_file_is_one_sentence_with_its_row(tmp_path, rows, says):
    with pytest.raises(UserError, match=rf"test\.csv, {says}"):
        read_captions(write(tmp_path / "test.csv", f"key,vid_key,video_id,sentence\n{rows}\n"))
    data = write(tmp_path / "MSRVTT_data.json", MSRVTT)
    write(tmp_path / "list.csv", "video\nvideo1\n")
    with pytest.raises(UserError, match=r"list\.csv has no column 'video_id'; give a file with the columns video_id"):
        read_captions(data, ["list.csv"])


def test_lines_of_json_name_videos_too(tmp_path):
    line = {"video": "clip.mp4", "caption": "a star", "question": "what is it?", "answer": "a star"}
    path = write(tmp_path / "own.jsonl", json.dumps(line))
    [caption], [question] = read_captions(path), read_questions(path)
    for record in (caption, question):
        assert record.is_video and record.image_id == "clip" and record.named_images == (("clip.mp4",), ())

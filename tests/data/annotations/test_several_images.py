"""Captions and questions about several images, in JSON lines."""

import json

import pytest

from dimvl.data.annotations import read_captions, read_questions
from dimvl.data.annotations.records import name_images
from dimvl.errors import UserError
from tests.data.annotations.files import write

READERS = {"caption": read_captions, "question": read_questions}


@pytest.fixture(params=READERS)
def read(request, tmp_path):
    """Read lines of captions or questions, given without their text."""

    def read(*lines):
        text = "".join(json.dumps({request.param: "a star", **line}) + "\n" for line in lines)
        return READERS[request.param](write(tmp_path / "own.jsonl", text))

    return read


def test_images_and_times_come_back_in_their_order(read):
    records = read({"images": [18, "a b.jpg", 17], "times": [0, 0, 2.5]}, {"images": ["17"]}, {"images": [18, 17]})
    assert [record.images for record in records] == [
        (("18", "a b.jpg", "17"), (0.0, 0.0, 2.5)),
        (("17",), ()),
        (("18", "17"), ()),
    ]
    assert all(record.file_names == record.image_ids for record in records)


def test_a_list_of_one_image_is_that_image(read):
    one, same = read({"image": 17, "id": 0, "question_id": 0}, {"images": [17], "id": 1, "question_id": 1})
    assert one.images == same.images == (("17",), ()) and one.image_id == same.image_id == "17"


def test_no_record_of_several_images_passes_for_one(read):
    [record] = read({"images": [17, 18]})
    with pytest.raises(ValueError, match="too many values"):
        _ = record.image_id


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({}, "line 2 has no field 'image'"),
        ({"image": 1, "images": [2]}, "line 2 has both image and images; keep one of them"),
        ({"images": []}, "line 2: images is empty; name at least one image"),
        ({"images": 17}, "line 2: images is 17, not a list"),
        ({"images": "a.jpg"}, r"line 2: images is 'a\.jpg', not a list"),
        ({"images": {"17": 18}}, "line 2: images is {'17': 18}, not a list"),
        ({"images": [17, 18, "17"]}, "line 2: images names '17' twice; name each image once"),
        ({"images": [17, None]}, "line 2: image None is not an id"),
        ({"images": [17, [18]]}, r"line 2: image \[18\] is not an id"),
        ({"images": [17, 18], "times": [1]}, r"line 2: times is \[1\]; give a list of seconds, one per image \(2\)"),
        ({"image": 17, "times": [1, 2]}, r"line 2: times is \[1, 2\]; give a list of seconds, one per image \(1\)"),
        ({"image": 17, "times": 1}, "line 2: times is 1; give a list of seconds"),
        ({"image": 17, "times": None}, "line 2: times is None; give a list of seconds"),
        ({"image": 17, "times": [-0.5]}, r"line 2: -0\.5 in times is not a number of seconds; give 0 or more"),
        ({"image": 17, "times": [float("nan")]}, "line 2: nan in times is not a number of seconds"),
        ({"image": 17, "times": [float("inf")]}, "line 2: inf in times is not a number of seconds"),
        ({"image": 17, "times": [10**400]}, r"line 2: 10+\.\.\.0+ in times is not a number of seconds"),
        ({"image": 17, "times": ["1"]}, "line 2: '1' in times is not a number of seconds"),
        ({"image": 17, "times": [True]}, "line 2: True in times is not a number of seconds"),
        ({"images": [17, 18, 19], "times": [0, 2.5, 1]}, r"line 2: times fall from 2\.5 to 1; give the images in"),
        ({"image": 17, "video": "v"}, "line 2 has both video and image, but a video is its frames in the store"),
        ({"images": [17, 18], "video": "v"}, "line 2 has both video and images"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence_with_the_line(read, line, says):
    with pytest.raises(UserError, match=rf"own\.jsonl, {says}") as caught:
        read({"image": 17}, line)
    assert "\n" not in str(caught.value)


def test_messages_name_the_first_images():
    assert name_images(["17"]) == "image 17" and name_images(["17", "18"]) == "images 17, 18"
    assert name_images(list("abcde")) == "images a, b, c and 2 more"

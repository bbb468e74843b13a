"""Small files of stories and videos, written by hand after the official ones."""

from typing import Any


def vist_sentence(story: int, album: int, photo: int, order: int, text: str) -> list[dict[str, str | int]]:
    """One annotation as VIST has it: a list of one sentence."""
    return [
        {
            "original_text": text.capitalize(),
            "album_id": str(album),
            "photo_flickr_id": str(photo),
            "setting": "first-2-pick-and-tell",
            "worker_id": "FJROI8NWDRIPAM1",
            "story_id": str(story),
            "tier": "story-in-sequence",
            "worker_arranged_photo_order": order,
            "text": text,
            "storylet_id": str(10 * story + order),
        }
    ]


def vist_file(stories: dict[int, tuple[int, list[int], list[str]]], albums: list[int]) -> dict[str, Any]:
    """A file of stories: id -> album, photographs and sentences."""
    return {
        "type": "vist",
        "images": [
            {"id": str(photo), "album_id": str(album)} for album, photos, _ in stories.values() for photo in photos
        ],
        "albums": [{"id": str(album), "title": "a trip"} for album in albums],
        "annotations": [
            vist_sentence(story, album, photo, order, text)
            for story, (album, photos, texts) in stories.items()
            for order, (photo, text) in enumerate(zip(photos, texts, strict=True))
        ],
    }


SENTENCES = ["we went to the [location] .", "[male] was there .", "a star .", "two circles .", "we slept ."]
STORIES = {
    30: (5, [11, 12, 13, 14, 15], SENTENCES),
    31: (5, [12, 13, 14, 15, 16], SENTENCES[::-1]),
    40: (6, [21, 22, 23, 24, 25], SENTENCES),
}
VIST = vist_file(STORIES, [5, 6])
MSRVTT = {
    "info": {"year": "2016"},
    "videos": [
        {"video_id": "video0", "split": "train", "category": 9, "start time": 137.72, "end time": 149.44, "id": 0},
        {"video_id": "video1", "split": "validate", "category": 3, "start time": 0, "end time": 9, "id": 1},
    ],
    "sentences": [
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 7},
        {"caption": "a man talks", "video_id": "video1", "sen_id": 8},
        {"caption": "a red car", "video_id": "video0", "sen_id": 9},
    ],
}
NINE_K = "video_id\nvideo1\nvideo3\n"
ONE_K = 'key,vid_key,video_id,sentence\nret0,msr7010,video0,"a person, on a horse"\nret1,msr7011,video1,a dog\n'
ACTIVITYNET = {
    "v_QOlSCBRmfWY": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.37, 60.81]],
        "sentences": ["A young woman is seen standing in a room.", " She dances."],
    },
    "v_ehGHCYKzyZ8": {"duration": 61.1, "timestamps": [[0, 10]], "sentences": ["The video starts."]},
}

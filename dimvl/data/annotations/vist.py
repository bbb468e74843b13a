"""Visual storytelling (VIST: Huang et al., NAACL 2016): albums of photographs, and stories about five photographs each.

`{"annotations": [[{"story_id", "album_id", "photo_flickr_id", "worker_arranged_photo_order", "text"}], ...], "albums":
[{"id"}, ...]}`: each annotation is a list of one sentence, and the sentences of a story in their order are one text.
`text` is tokenised, and people and places are `[male]` or `[location]` in it; published models learn this text.
"""

import logging
from pathlib import Path
from typing import Any

from dimvl.data.annotations.records import Caption
from dimvl.errors import UserError
from dimvl.fields import Id, Once, identifier, items, mapping, records, words
from dimvl.showing import counted, short, with_others

logger = logging.getLogger(__name__)
FIELDS = ("story_id", "album_id", "photo_flickr_id", "worker_arranged_photo_order", "text")
Sentence = tuple[int, Id, str]
"""Place in the story, from 0; photograph; text."""


def is_vist(content: Any) -> bool:
    """Whether a file has annotations that are lists, as VIST's stories are."""
    listed = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(listed, list) and bool(listed) and isinstance(listed[0], list)


def vist_stories(path: Path, content: Any) -> list[Caption]:
    """Read stories, in the order of their first sentences; albums without a story are counted in the log.

    Args:
        path: for messages.
        content: the file's JSON value.

    Raises:
        UserError: another format, an empty sentence, a story that is in two albums, that has two sentences at one
            place or none at another, or that shows a photograph twice.

    """
    albums, stories = dict[str, Id](), dict[str, list[Sentence]]()
    ids = dict[str, Id]()
    for number, listed in enumerate(items(content["annotations"], "annotations", str(path))):
        place = f"{path}: item {number} of 'annotations'"
        listed = items(listed, "the annotation", place)
        if len(listed) != 1:
            raise UserError(f"{place} has {counted(len(listed), 'sentence')}; write a list of one sentence each")
        record = mapping(listed[0], FIELDS, place)
        story, album, photo = (identifier(record[name], name, place) for name in FIELDS[:3])
        if str(albums.setdefault(str(story), album)) != str(album):
            raise UserError(
                f"{place}: story {story} is in album {album} and in album {albums[str(story)]}; give each its own id"
            )
        order = identifier(record[FIELDS[3]], FIELDS[3], place)
        if not str(order).isdecimal() or len(str(order)) > 6:
            raise UserError(f"{place}: {FIELDS[3]} is {short(order)}; give the place in the story, from 0")
        text = words(record["text"], f"text of story {story}", place)
        stories.setdefault(str(story), []).append((int(order), photo, text))
        ids.setdefault(str(story), story)
    _count_albums(path, content, {str(album) for album in albums.values()})
    return [_story(path, ids[key], albums[key], sentences) for key, sentences in stories.items()]


def _story(path: Path, story: Id, album: Id, sentences: list[Sentence]) -> Caption:
    sentences.sort(key=lambda sentence: sentence[0])
    orders, photos = [order for order, _, _ in sentences], tuple(photo for _, photo, _ in sentences)
    place = f"{path}: story {story}"
    if orders != list(range(len(orders))):
        raise UserError(f"{place} has sentences at the places {short(orders)}; give one at each place from 0")
    once = Once("photo_flickr_id")
    for photo in photos:
        once.check(photo, place)
    images = tuple(map(str, photos))
    return Caption(story, images, " ".join(text for _, _, text in sentences), written_ids=photos, album=album)


def _count_albums(path: Path, content: Any, told: set[str]) -> None:
    if not content.get("albums"):
        return
    listed = [identifier(album["id"], "id", place) for place, album in records(path, content, "albums", ("id",))]
    if untold := [album for album in listed if str(album) not in told]:
        logger.warning(
            "%s: %d of %d albums have no story and are left out, such as %s",
            *(path, len(untold), len(listed), with_others(untold[0], len(untold))),
        )

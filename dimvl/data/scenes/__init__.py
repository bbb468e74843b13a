"""Synthetic scenes: images, boxes, captions and questions from a seed, written in real annotation formats.

A seed becomes a `World` (world.py), from which image (render.py), captions (language.py) and questions (questions.py)
are made, and if asked for, statements about several images (statements.py), phrases that describe one object
(references.py) and stories of images of their own (stories.py); write.py saves them. Captions can be parsed into facts
and judged (facts.py, scores.py), or made false by changing one word (word_changes.py); stories.py judges stories.
"""

from dimvl.data.scenes.facts import Fact, judge
from dimvl.data.scenes.language import is_true, parse_caption
from dimvl.data.scenes.render import render
from dimvl.data.scenes.scores import caption_facts, score_captions
from dimvl.data.scenes.stories import judge_story
from dimvl.data.scenes.word_changes import changed_caption, word_change_pairs
from dimvl.data.scenes.world import (
    COLOURS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    SceneOptions,
    World,
    sample_world,
)
from dimvl.data.scenes.write import read_worlds, write_scenes

__all__ = [
    "COLOURS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TEXTURES",
    "Fact",
    "SceneOptions",
    "World",
    "caption_facts",
    "changed_caption",
    "is_true",
    "judge",
    "judge_story",
    "parse_caption",
    "read_worlds",
    "render",
    "sample_world",
    "score_captions",
    "word_change_pairs",
    "write_scenes",
]

"""Synthetic scenes: pictures, boxes, captions and questions from a seed, written as real annotation files are."""

from dimvl.data.scenes.render import render
from dimvl.data.scenes.world import (
    COLOURS,
    HELD_OUT_COMBINATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    SceneObject,
    SceneOptions,
    World,
    sample_world,
)

__all__ = [
    "COLOURS",
    "HELD_OUT_COMBINATIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "SceneObject",
    "SceneOptions",
    "World",
    "render",
    "sample_world",
]

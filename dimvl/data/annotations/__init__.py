"""Readers of annotation files: every format of docs/annotations.md becomes captions, or questions with answers.

Image ids become text here, because the region store identifies images by text. `dimvl/data/matching.py` decides which
images of the store a record refers to.
"""

from dimvl.data.annotations.items import read_items
from dimvl.data.annotations.probes import Probe, Probes, read_probes
from dimvl.data.annotations.reading import describe_file, read_captions, read_questions
from dimvl.data.annotations.records import Caption, ImageKey, LabelledItem, Question
from dimvl.fields import Id

__all__ = [
    "Caption",
    "Id",
    "ImageKey",
    "LabelledItem",
    "Probe",
    "Probes",
    "Question",
    "describe_file",
    "read_captions",
    "read_items",
    "read_probes",
    "read_questions",
]

"""Readers of annotation files: every format becomes captions, questions with answers or candidates, or phrases.

docs/annotations.md shows the formats. Image ids become text here, because the region store identifies images by text.
`dimvl/data/matching.py` decides which images of the store a record refers to.
"""

from dimvl.data.annotations.choices import read_choices
from dimvl.data.annotations.items import read_items
from dimvl.data.annotations.phrases import Phrase
from dimvl.data.annotations.probes import Probe, Probes, read_probes
from dimvl.data.annotations.reading import describe_file, read_captions, read_phrases, read_questions
from dimvl.data.annotations.records import Caption, Choice, ImageKey, LabelledItem, Question, compared
from dimvl.fields import Id

__all__ = [
    "Caption",
    "Choice",
    "Id",
    "ImageKey",
    "LabelledItem",
    "Phrase",
    "Probe",
    "Probes",
    "Question",
    "compared",
    "describe_file",
    "read_captions",
    "read_choices",
    "read_items",
    "read_phrases",
    "read_probes",
    "read_questions",
]

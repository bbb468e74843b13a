"""Readers of annotation files: every format of docs/annotations.md becomes captions, questions or phrases.

Image ids become text here, because the region store identifies images by text. `dimvl/data/matching.py` decides which
images of the store a record refers to.
"""

from dimvl.data.annotations.phrases import Phrase
from dimvl.data.annotations.probes import Probe, Probes, read_probes
from dimvl.data.annotations.reading import describe_file, read_captions, read_phrases, read_questions
from dimvl.data.annotations.records import Caption, ImageKey, Question
from dimvl.fields import Id

__all__ = [
    "Caption",
    "Id",
    "ImageKey",
    "Phrase",
    "Probe",
    "Probes",
    "Question",
    "describe_file",
    "read_captions",
    "read_phrases",
    "read_probes",
    "read_questions",
]

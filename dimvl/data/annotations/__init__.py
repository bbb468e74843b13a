"""Annotation files to plain records: captions and questions with answers, of every format in docs/annotations.md.

Image ids become text here, as the region store knows images by the text of their id. Which image of the store a record
means is settled by `dimvl/data/matching.py`.
"""

from dimvl.data.annotations.reading import describe_file, read_captions, read_questions
from dimvl.data.annotations.records import Caption, Question

__all__ = ["Caption", "Question", "describe_file", "read_captions", "read_questions"]

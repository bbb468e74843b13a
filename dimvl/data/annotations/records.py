"""What annotation files become: one record for each caption and each question."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of an image.

    Attributes:
        caption_id: its number in the file; the place, from 0, where the file numbers nothing.
        image_id: the image as the file names it, as text.
        text: without outer blanks.
        file_name: file name, path or address of the picture; empty where the file tells none.

    """

    caption_id: int
    image_id: str
    text: str
    file_name: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question on an image.

    Attributes:
        question_id: its number.
        image_id: the image as the file names it, as text.
        text: without outer blanks.
        answers: what people answered, any number of them; empty where answers are not published.
        kind: question type, empty where the file tells none.
        answer_type: such as yes/no, number, other; empty where the file tells none.
        file_name: file name, path or address of the picture; empty where the file tells none.

    """

    question_id: int
    image_id: str
    text: str
    answers: tuple[str, ...]
    kind: str = ""
    answer_type: str = ""
    file_name: str = ""

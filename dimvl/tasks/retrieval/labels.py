"""Names of classes and the sentences they are put into, for zero-shot classification. No torch here."""

import re
from collections.abc import Sequence
from pathlib import Path

from dimvl.errors import UserError
from dimvl.fields import lines
from dimvl.regions.vocabulary import Vocabulary, is_background
from dimvl.showing import short

TEMPLATES = ("a photo of a(n) {}.", "a photo of the {}.", "a(n) {}.", "there is a(n) {}.")
"""Sentences around the name of a class: general ones, which were not tuned for any data."""
BLANK = "{}"
_ARTICLE = re.compile(r"\b(a)\(n\) (?=(\w))", re.IGNORECASE)


def read_labels(path: Path) -> list[str]:
    """Read a file with the name of a class in each line; of synonyms, separated by commas, the first is taken.

    A background in the first line is left out with a warning, as in every vocabulary.

    Raises:
        UserError: as `Vocabulary.read`, a background in another line, or fewer than two classes.

    """
    names = list(Vocabulary.read(path).names)
    if background := next(filter(is_background, names), None):
        raise UserError(f"{path}: {short(background)} stands for no class, and no image shows it; remove that line")
    _check_number(names, str(path))
    return names


def check_labels(labels: Sequence[str]) -> list[str]:
    """Check labels that are given in Python.

    Raises:
        UserError: fewer than two, an empty one, or one twice.

    """
    names = [name.strip() for name in ([labels] if isinstance(labels, str) else labels)]
    _check_number(names, "the list of labels")
    if not all(names):
        raise UserError(f"label {names.index('') + 1} of {len(names)} is empty; give a name")
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise UserError(f"label {short(twice)} appears twice; remove one")
    return names


def _check_number(names: Sequence[str], source: str) -> None:
    if len(names) < 2:
        found = f"only the class {short(names[0])}, whose probability would always be 1" if names else "no class"
        raise UserError(f"{source} has {found}; give at least two")


def read_templates(path: Path) -> list[str]:
    """Read a file with a template in each line, such as `a photo of a {}.`; blank lines do not count.

    Raises:
        UserError: the file cannot be read, has no template, one without exactly one `{}`, or one twice.

    """
    templates: list[str] = []
    for number, line in lines(path):
        template = line.strip()
        if template.count(BLANK) != 1:
            raise UserError(
                f"{path}, line {number}: {short(template)} needs {BLANK} once, where the class stands; add it"
            )
        if template in templates:
            raise UserError(f"{path}, line {number}: {short(template)} appears twice; remove one")
        templates.append(template)
    if not templates:
        raise UserError(f"{path} has no template; give one per line, such as 'a photo of a {BLANK}.'")
    return templates


def filled(template: str, name: str) -> str:
    """Put a name into a template; `a(n)` becomes the article that the next word needs."""
    text = template.replace(BLANK, name)
    return _ARTICLE.sub(lambda found: f"{found[1]}{'n' * (found[2].lower() in 'aeiou')} ", text)

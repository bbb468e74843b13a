"""Captions to content words: lemmas, each a noun, a verb or an adjective. English.

The lemmas and the possible parts of speech of a form come from lemminflect, a dictionary of 770 kB (MIT licence) made
from the SPECIALIST lexicon. Which part of speech a form has is decided once for all captions, from the words that stand
beside it: the dictionary gives the possibilities, closed classes (articles, prepositions, forms of "be") the evidence.
A form that the dictionary lacks, such as "frisbee", is a noun, or an adjective if it mostly stands before a noun.
Adverbs and function words are no concepts.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dimvl.errors import UserError
from dimvl.regions.naming.settings import PartOfSpeech

TOKEN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*|[.,;:!?]")


def _forms(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMBERS = _forms("one two three four five six seven eight nine ten")
DETERMINERS = _forms(
    "a an the his her its their our my your this these that those some any no another each every both all several "
    "many few"
)
PREPOSITIONS = _forms(
    "of in on at with by for from through near behind beside under above below between into onto over across along "
    "around against towards toward during without"
)
OPENERS = NUMBERS | DETERMINERS | PREPOSITIONS | {"wearing"}
"""A noun phrase begins after these: what follows is an adjective or a noun."""
SUBJECTS = _forms("he she it they who which that while to and")
"""A verb may follow these."""
OBJECTS = _forms(
    "a an the his her its their him them it up down out off into through over across along onto around away to at for"
)
"""These follow a verb more often than a noun."""
ENDS = _forms(". , ; : ! ? is are was were has have and while who that of") | {""}
"""These follow a noun more often than a verb or an adjective."""
STOP = (
    DETERMINERS
    | PREPOSITIONS
    | SUBJECTS
    | OBJECTS
    | ENDS
    | _forms(
        "i me you we us himself herself itself themselves something someone somebody anything everyone everything "
        "nothing other others else what where when why how there here then than as if but or nor so not very too just "
        "only also still almost about after before again be been being am do does did doing done having had can could "
        "will would shall should may might must get gets getting got go goes going gone make makes making made seem "
        "seems appear appears appearing like such same more most less least much well whilst because until since upon "
        "within inside outside together apart front back top bottom side next middle end left right way thing kind "
        "type sort lot bit pair forward ahead nearby past upside outdoors indoors atop underneath beneath amidst "
        "backwards alone ready various s t don image picture photo photograph"
    )
)
"""Function words, and words that say nothing about what can be seen."""
TAGS: dict[PartOfSpeech, str] = {"noun": "NOUN", "verb": "VERB", "adjective": "ADJ"}
"""Part of speech -> its name in lemminflect."""
PLURALS = _forms(
    "pants shorts jeans trousers tights glasses sunglasses eyeglasses goggles binoculars headphones scissors pajamas "
    "pyjamas overalls clothes stairs woods rapids leggings bleachers"
)
"""Nouns whose plural is not that of another noun, or of one that means something else."""


class Word(NamedTuple):
    """A lemma and its part of speech."""

    lemma: str
    part: PartOfSpeech


def tokens(text: str) -> list[str]:
    """Split a caption into lower-case words, without a possessive 's, and marks."""
    return TOKEN.findall(re.sub(r"['\u2019]s\b", "", text.lower()))


class Lexicon:
    """The content words of captions, form by form.

    Args:
        texts: the captions.

    Attributes:
        words: form -> its lemma and part of speech; function words and adverbs are absent.
        counts: form -> how often it occurs.

    Raises:
        UserError: lemminflect is not installed.

    """

    words: dict[str, Word]

    def __init__(self, texts: Iterable[str]) -> None:
        self.counts: Counter[str] = Counter()
        before: dict[str, Counter[str]] = defaultdict(Counter)
        after: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            line = tokens(text)
            self.counts.update(line)
            for one, other in zip(["", *line], [*line, ""], strict=True):
                before[other][one] += 1
                after[one][other] += 1
        possible = {form: _possible(form, self.counts) for form in self.counts if form not in STOP and form.isalpha()}
        hyphenated: dict[str, dict[PartOfSpeech, str]] = {
            form: {"noun": form, "adjective": form} for form in self.counts if "-" in form
        }
        possible |= hyphenated
        content = {form for form, parts in possible.items() if "noun" in parts}
        adjectives = {form for form in possible if _is_adjective(possible[form], after[form], content)}
        self.words = {}
        for form, lemmas in possible.items():
            part = self._part(form, lemmas, before[form], after[form], adjectives)
            if part is not None:
                self.words[form] = Word(lemmas[part], part)

    def _part(
        self,
        form: str,
        possible: Mapping[PartOfSpeech, str],
        before: Counter[str],
        after: Counter[str],
        adjectives: set[str],
    ) -> PartOfSpeech | None:
        """Decide what a form is by the words on both sides of it; None for an adverb."""
        if form in adjectives:
            return "adjective"
        if "noun" not in possible or "verb" not in possible:
            return next((part for part in possible if part != "adjective"), None)
        noun = _share(before, OPENERS | adjectives)
        if form.endswith("ing"):  # "is building" but "a building"; "clothing", where "clothe" never occurs
            ends = _share(after, ENDS) > 0.5 or not self.counts[possible["verb"]]
            return "noun" if noun > 0.5 and ends else "verb"
        return "verb" if 1 - noun + _share(after, OBJECTS) > noun + _share(after, ENDS) else "noun"

    def content(self, text: str) -> Iterator[Word]:
        """Yield the content words of a text, in order; forms that were never seen are left out."""
        return (self.words[form] for form in tokens(text) if form in self.words)

    def lemmas(self, text: str) -> set[str]:
        """Return the lemmas of a text's content words."""
        return {word.lemma for word in self.content(text)}

    def most_frequent(self, number: int) -> list[Word]:
        """Return the most frequent lemmas, with the part of speech that each has most often; ties by the alphabet."""
        totals: Counter[str] = Counter()
        parts: dict[str, Counter[PartOfSpeech]] = defaultdict(Counter)
        for form, (lemma, part) in self.words.items():
            totals[lemma] += self.counts[form]
            parts[lemma][part] += self.counts[form]
        best = sorted(totals, key=lambda lemma: (-totals[lemma], lemma))[:number]
        return [Word(lemma, max(parts[lemma], key=lambda part: (parts[lemma][part], part))) for lemma in best]


def _possible(form: str, counts: Mapping[str, int]) -> dict[PartOfSpeech, str]:
    """Return the parts of speech that a form may have, with its lemma as each."""
    try:
        from lemminflect import getAllLemmas
    except ImportError:
        raise UserError(
            "words of captions need the package lemminflect, which is not installed; pip install 'dimvl[photos]'"
        ) from None
    if form in PLURALS:
        return {"noun": form}
    known = getAllLemmas(form)
    parts: dict[PartOfSpeech, str] = {}
    for part, tag in TAGS.items():
        if tag in known:
            parts[part] = max(known[tag], key=lambda lemma: (lemma != form, counts[lemma]))
    if "adjective" in parts and "ADV" in known:  # "high", "fast": as nouns and verbs they are rare
        parts = {"adjective": parts["adjective"]}
    if len(parts) > 1 and "adjective" in parts and not (parts["adjective"] == form or counts[parts["adjective"]]):
        del parts["adjective"]  # "number" is not of "numb", if that never occurs
    if known:
        return parts
    for ending in ("s", "es"):
        if form.endswith(ending) and counts[form.removesuffix(ending)]:
            return {"noun": form.removesuffix(ending)}
    for ending in ("ing", "ed"):
        stem = form.removesuffix(ending)
        if stem != form:
            return {"verb": next((base for base in (stem, stem + "e", stem[:-1]) if counts[base]), form)}
    return {"noun": form, "adjective": form}


def _share(neighbours: Counter[str], wanted: frozenset[str] | set[str]) -> float:
    return sum(number for form, number in neighbours.items() if form in wanted) / max(neighbours.total(), 1)


def _is_adjective(possible: Mapping[PartOfSpeech, str], after: Counter[str], content: set[str]) -> bool:
    """Whether a form that may be an adjective is one: it has no other choice, or mostly stands before a noun."""
    if "adjective" not in possible:
        return False
    return len(possible) == 1 or _share(after, content) > 0.5

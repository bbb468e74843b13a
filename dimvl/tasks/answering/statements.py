"""Rules that turn a question into a statement for each of its answers, for models that know no question labels.

A file of rules (YAML or JSON) has patterns of questions, a statement, and the answers to choose from:

    words: {colour: [red, green]}
    statements:
      - questions: ["is there a(n) {thing}?"]
        statement: there is a(n) {thing}.
      - questions: ["what colour is the {thing}?"]
        statement: the {thing} is {answer}.
        answers: [red, green]

docs/scoring.md explains all keys. No torch here; `zero_shot.py` scores the statements.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from dimvl.config import Section, read_yaml, validate
from dimvl.errors import UserError
from dimvl.fields import is_blank
from dimvl.showing import counted, short

ANSWER = "answer"
YES, NO = "yes", "no"
MOST_OPEN = 4
"""Blanks of a pattern that stand for any words: each can be filled in up to eight ways, so all are soon tried."""
_ANY_WORDS = r"\S++(?: \S++){0,7}?"
_BLANK = re.compile(r"\{([a-z_][a-z0-9_]*)(\??)\}")  # in a pattern
_FILLED = re.compile(r"\{(?:([a-z_][a-z0-9_]*) )?([a-z_][a-z0-9_]*)\}")  # in a statement
_ARTICLE = "a(n)"
_BEGIN, _END = "\0", "\1"  # around an answer, until the articles are fitted
_FIT = re.compile(rf"a\(n\) ({_BEGIN}?)(\w)")


def _words_of_answers(value: Any) -> Any:
    """Turn a list of answers into a mapping from each to itself."""
    if not isinstance(value, list):
        return value
    if twice := [answer for place, answer in enumerate(value) if answer in value[:place]]:
        raise ValueError(f"{short(twice[0])} appears twice; remove one")
    return {str(answer): answer for answer in value}


def _certain(value: Any) -> Any:
    """Turn an answer without a statement into a judgement of the empty statement, which is always true."""
    return value if value is None or isinstance(value, dict | Section) else {"statement": "", "answers": [value]}


class JudgementConfig(Section):
    """A statement, and the answers that it may have."""

    statement: str = Field(description="a sentence with blanks, and {answer} where the answer stands")
    answers: Annotated[dict[str, str] | None, BeforeValidator(_words_of_answers)] = Field(
        None, description="the answers, or each answer with its words in the statement"
    )
    otherwise: Annotated["JudgementConfig | None", BeforeValidator(_certain)] = Field(
        None, description="the answer, or another statement, for images of which the statement is false"
    )


class RuleConfig(JudgementConfig):
    """Patterns of questions with their statement."""

    questions: list[str] = Field(min_length=1, description="patterns of questions")


class StatementsConfig(Section):
    """A file of rules; the first pattern that a question fits decides."""

    score: Literal["match", "masked_word"] = Field("match", description="what decides between the statements")
    words: dict[str, list[str]] = Field({}, description="what a blank stands for; others stand for any words")
    changes: dict[str, dict[str, str]] = Field({}, description="words that {CHANGE BLANK} replaces")
    statements: list[RuleConfig] = Field(min_length=1, description="the rules")


class Statement(NamedTuple):
    """A statement as parts of text, of which those at odd places are the answer."""

    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole sentence."""
        return "".join(self.parts)


@dataclass(frozen=True)
class Asked:
    """A question by the statements of its answers.

    Attributes:
        levels: (answer, statement) pairs; those of a level count for images of which all before it are false.
        otherwise: the answer for images of which all statements are false; None: one of them is true.

    """

    levels: Sequence[Sequence[tuple[str, Statement]]]
    otherwise: str | None

    @property
    def statements(self) -> list[Statement]:
        """The statements of all levels, in order."""
        return [statement for level in self.levels for _, statement in level]

    def ranked(self, logits: Sequence[float]) -> list[tuple[str, float]]:
        """Return the answers with their probabilities, best first.

        The probabilities of a level are the softmax of its logits and, if anything comes after it, of a 0 for what
        comes after: with one statement that is the sigmoid of its logit.

        Args:
            logits: (S,) logit of each of `statements`.

        """
        probabilities, left, start = dict[str, float](), 1.0, 0
        for level in self.levels:
            own = [*logits[start : start + len(level)], 0.0 if self._goes_on(level) else -inf]
            powers = [exp(logit - max(own)) for logit in own]
            shares = [left * power / sum(powers) for power in powers]
            for (answer, _), share in zip(level, shares[:-1], strict=True):
                probabilities[answer] = probabilities.get(answer, 0.0) + share
            left, start = shares[-1], start + len(level)
        if self.otherwise is not None:
            probabilities[self.otherwise] = probabilities.get(self.otherwise, 0.0) + left
        return sorted(probabilities.items(), key=lambda item: -item[1])

    def _goes_on(self, level: Sequence[tuple[str, Statement]]) -> bool:
        return self.otherwise is not None or level is not self.levels[-1]


class _Level(NamedTuple):
    template: str
    answers: Mapping[str, str]

    @property
    def texts(self) -> list[str]:
        return [self.template, *self.answers.values()]


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    levels: Sequence[_Level]
    otherwise: str | None


class StatementRules:
    """The rules of a file, checked.

    Attributes:
        score: `match` or `masked_word`.
        source: where the rules come from, for messages.
        values: the rules as read, with those of included files.

    Raises:
        UserError: a mistake in them.

    """

    def __init__(self, config: StatementsConfig, source: str) -> None:
        self.score, self.source, self._config = config.score, source, config
        self.values = config.model_dump(mode="json", exclude_defaults=True)
        self._rules = [rule for own in config.statements for rule in self._compiled(own)]
        patterns = [_plain(pattern) for own in config.statements for pattern in own.questions]
        if twice := [pattern for place, pattern in enumerate(patterns) if pattern in patterns[:place]]:
            raise UserError(f"{source}: two rules have the question {short(twice[0])}; remove one")
        blanks = {name for rule in self._rules for name in rule.pattern.groupindex}
        texts = [text for rule in self._rules for level in rule.levels for text in level.texts]
        changes = {change for text in texts for change, _ in _FILLED.findall(text)}
        for key, unused in (("words", config.words.keys() - blanks), ("changes", config.changes.keys() - changes)):
            if unused:
                raise UserError(f"{source}: nothing uses {min(unused)!r} of {key}; remove it")
        if not any(map(self._can_score, self._rules)):
            raise UserError(
                f"{source}: no rule has words to mask, which need {{answer}}, two answers or more and no otherwise; "
                "set score to match"
            )

    def ask(self, question: str) -> Asked | None:
        """Return the statements of a question; None if no rule covers it.

        Case, spaces and the punctuation at its end do not matter. With `score: masked_word`, a rule covers nothing if
        the answers are not its only words to choose from: without `{answer}`, or with `otherwise`.
        """
        text = f"{_plain(question)} "
        for rule in self._rules:
            if found := rule.pattern.fullmatch(text):
                if not self._can_score(rule):
                    return None
                values = {name: value or "" for name, value in found.groupdict().items()}
                levels = [
                    [(answer, self._filled(level.template, words, values)) for answer, words in level.answers.items()]
                    for level in rule.levels
                ]
                return Asked(levels, rule.otherwise)
        return None

    def _can_score(self, rule: _Rule) -> bool:
        return self.score == "match" or (len(rule.levels) == 1 and rule.otherwise is None)

    def _compiled(self, own: RuleConfig) -> Iterator[_Rule]:
        levels, otherwise = list[_Level](), None
        judgement: JudgementConfig | None = own
        while judgement is not None:
            answers, template = judgement.answers, judgement.statement
            if is_blank(template):
                if not levels or answers is None or len(answers) != 1 or any(map(is_blank, answers)):
                    raise UserError(f"{self.source}: question {short(own.questions[0])} has no statement; write one")
                [otherwise] = answers
                break
            if answers is None and not _has_answer(template):
                answers, otherwise = {YES: YES}, NO if judgement.otherwise is None else None
            levels.append(_Level(template, answers or {}))
            judgement = judgement.otherwise
        for pattern in own.questions:
            rule = _Rule(self._pattern(pattern), levels, otherwise)
            for level in levels:
                self._check(level, rule)
            yield rule

    def _pattern(self, written: str) -> re.Pattern[str]:
        place, parts, names = f"{self.source}: question {short(written)}", list[str](), list[str]()
        for word in _plain(written).split(" "):
            if blank := _BLANK.fullmatch(word):
                name, optional = blank.groups()
                names.append(name)
                given = self._config.words.get(name)
                if given is not None and (not given or any(map(is_blank, given))):
                    raise UserError(f"{self.source}: words of {name!r} are missing or empty; give some, or remove it")
                inner = _ANY_WORDS if given is None else "|".join(re.escape(_plain(value)) for value in given)
                part = f"(?P<{name}>{inner}) "
                parts.append(f"(?:{part})?" if optional else part)
            elif "{" in word or "}" in word:
                raise UserError(f"{place} has {short(word)}; write a blank as a word of its own, such as {{thing}}")
            else:
                parts.append("an? " if word == _ARTICLE else f"{re.escape(word)} ")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{place} has the blank {{{twice[0]}}} twice; give the second one another name")
        if sum(name not in self._config.words for name in names) > MOST_OPEN:
            raise UserError(f"{place} has more than {MOST_OPEN} blanks for any words; list the words of some in words")
        if ANSWER in names or not parts or len(names) == len(parts):
            raise UserError(f"{place} needs words besides its blanks, of which none is {{answer}}; write, say, 'is it'")
        return re.compile("".join(parts))

    def _check(self, level: _Level, rule: _Rule) -> None:
        """Refuse a statement with blanks that the question lacks, or with answers that do not fit it."""
        template, answers = level
        place, blanks = f"{self.source}: statement {short(template)}", rule.pattern.groupindex
        for text in level.texts:
            for change, name in _FILLED.findall(text):
                if name not in blanks and (name != ANSWER or text is not template):
                    raise UserError(
                        f"{place} has the blank {{{name}}}, which a question of its rule lacks; name a blank of all "
                        "its questions"
                    )
                if change and (name == ANSWER or change not in self._config.changes):
                    raise UserError(f"{place} has {{{change} {name}}}; add {change!r} to changes, or write {{{name}}}")
            if set("{}") & {*_FILLED.sub("", text)}:
                raise UserError(f"{place} has a brace that belongs to no blank; write blanks as {{thing}}")
        if re.search(r"[\w}]\{answer\}|\{answer\}[\w{]", template):
            raise UserError(f"{place} has letters beside {{answer}}; put a space between them")
        if empty := [answer for answer, words in answers.items() if is_blank(answer) or is_blank(words)]:
            raise UserError(f"{place} has the empty answer {empty[0]!r}; remove it, or give its words")
        last = level is rule.levels[-1] and rule.otherwise is None
        if not _has_answer(template) and len(answers) != 1:
            raise UserError(
                f"{place} has no {{answer}} but {counted(len(answers), 'answer')}; say where the answer stands"
            )
        if not answers or (last and len(answers) == 1):
            raise UserError(f"{place} has {counted(len(answers), 'answer')} to choose from; give two, or otherwise")

    def _filled(self, template: str, answer: str, values: Mapping[str, str]) -> Statement:
        def value(blank: re.Match[str]) -> str:
            change = self._config.changes.get(blank[1], {})
            return " ".join(change.get(word, word) for word in values[blank[2]].split())

        text = _FILLED.sub(value, template.replace("{answer}", f"{_BEGIN}{answer}{_END}"))
        text = re.sub(" (?=[,.;:!?])", "", " ".join(text.split()))
        text = _FIT.sub(lambda found: f"{found[1]}{'an' if found[2] in 'aeiou' else 'a'} {found[2]}", text)
        return Statement(tuple(re.split(f"[{_BEGIN}{_END}]", text)))


def read_statements(path: Path) -> StatementRules:
    """Read a file of rules.

    Raises:
        UserError: it is missing, not YAML or JSON of this form, or a rule has a mistake.

    """
    return StatementRules(validate(StatementsConfig, read_yaml(path), str(path)), str(path))


def _has_answer(template: str) -> bool:
    return f"{{{ANSWER}}}" in template


def _plain(text: str) -> str:
    """Return a question in lower case, with single spaces and without the punctuation at its end."""
    return " ".join(re.sub(f"[{_BEGIN}{_END}]", "", text).lower().split()).rstrip(" ?.!")

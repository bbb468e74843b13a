"""Which of several rules says what a name means, such as an image's id, its file name or the number in it.

Every place where names of one file are looked up in another (annotations in a store, sizes of images, COCO ids) has
several rules. The worst mistake is to follow one that finds images, but the wrong ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dimvl.errors import UserError
from dimvl.showing import short

RIVAL = 0.5
"""A rule that finds this share of what the best one finds may be the right one: where numbers of two kinds begin at 0
and at 1, or a few images are missing, the wrong rule finds almost as many as the right one, or more."""
SHOWN = 3


def choose_rule(found: Mapping[str, Mapping[Any, Any]], where: str, option: Callable[[str], str]) -> str:
    """Choose the rule that finds the most names, or the first of these.

    Args:
        found: rule -> name -> what the rule finds for it, in order of preference; at least one rule.
        where: what the names are of, for the message.
        option: returns what to write to choose a rule, such as `match=id`.

    Raises:
        UserError: another rule finds at least half as many, and for some name something else.

    """
    best = max(found, key=lambda rule: len(found[rule]))
    for other, meant in found.items():
        differ = [name for name in meant if found[best].get(name, meant[name]) != meant[name]]
        if differ and len(meant) >= RIVAL * len(found[best]):
            shown = ", ".join(
                f"{short(name)} is {short(found[best][name])} or {short(meant[name])}" for name in differ[:SHOWN]
            )
            raise UserError(
                f"{where}: {best} finds {len(found[best]):,} images and {other} {len(meant):,}, but they disagree on "
                f"{len(differ):,} of them: {shown}; say which is right with {option(best)} or {option(other)}"
            )
    return best

"""Names in a class list, or in an answer list, that stand for no class: background, unknown, padding.

Detectors and published lists often have such a name in first place. Numbers that count it and names that do not are one
apart, which shifts every class.
"""

import re

_NO_CLASS = frozenset(
    {
        *("background", "backgroundclass", "bg", "unknown", "unk", "none", "na", "null", "nil", "nothing", "void"),
        *("noobject", "notanobject", "nonobject", "noobj", "noclass", "unlabeled", "unlabelled", "ignore", "ignored"),
        *("noattribute", "noattributes"),
        *("pad", "padding", "dummy", "placeholder"),
    }
)
_MARKS = re.compile(r"[\W_]+")


def is_background(name: str) -> bool:
    """Whether a name stands for no class, in any usual spelling: `__background__`, `BG`, `<unk>`, `N/A`, `no object`.

    A name without a letter or digit, such as `-`, does too.
    """
    plain = _MARKS.sub("", name.casefold())
    return not plain or plain in _NO_CLASS

"""Ways to damage or edit one file of a folder, each by a generator of random numbers.

A mutation is a function of the bytes of a file, or of its path where it replaces the file by something else. Edits keep
the structure of the file: of JSON, lines, YAML, arrays and safetensors they change one value, key or header field.
`reseal` afterwards makes all checksums of the folder fit, as an attacker or a careful editor would.
"""

import copy
import hashlib
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RAW = ("-0", "1e999", "9" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 600 + "1" + "}" * 600, "NaN", "-Infinity", "0x10")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 255, 10**6, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.5, 1e308, 2.0),
    *(float("nan"), float("inf"), "", "0", "x" * 200_000, "../../etc/passwd", "/dev/zero", "\0", "\ud800", "\x1b[2J"),
    *([], {}, [[]], [None], {"": None}, [1, "1"], {"step": 1}),
)
YAML = (
    *("!!python/object/apply:os.system [id]", "!!int x", "!!bool 7", "!!timestamp 9999-99-99", "2026-13-45", "0o777"),
    *("!!binary 'ä'", "!!float nan", ".inf", "1e-4", "0x1F", "12:30:45", "on", "~", "9" * 5000, "[" * 2000, "{" * 2000),
    *("'", '"', "%", "@a", "`", "*missing", "&a [*a]", "!!set {a, b}", "? a", "- " * 3000 + "x", "\t- x", "!!omap []"),
    *("{<<: 3}", "&a {<<: *a}", "null", "1_000", "2026-01-02", "x # y", "x: y", "!<tag:yaml.org,2002:int> 08", "\x07"),
    "&a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]",
)
INCLUDES = (
    "[pretrain.yaml]",
    "[.]",
    "[/dev/zero]",
    "[missing.yaml]",
    "[base.yaml, base.yaml]",
    "base.yaml",
    "[[a]]",
    "3",
)


def flip(data: bytes, drawn: random.Random) -> bytes:
    """Flip one bit."""
    changed, bit = bytearray(data), drawn.randrange(len(data) * 8)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def overwrite(data: bytes, drawn: random.Random) -> bytes:
    """Replace a few bytes by random ones."""
    start, length = drawn.randrange(len(data)), drawn.randint(1, 16)
    return data[:start] + drawn.randbytes(length) + data[start + length :]


def cut(data: bytes, drawn: random.Random) -> bytes:
    """Cut the end off, perhaps everything."""
    return data[: drawn.choice((0, 1, 8, len(data) // 2, len(data) - 1, drawn.randrange(len(data))))]


def grow(data: bytes, drawn: random.Random) -> bytes:
    """Append something, or repeat a part."""
    start = drawn.randrange(len(data))
    return drawn.choice((data + b"\0", data + b"\n\n", data + data, data[: start + 40] + data[start:]))


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "one bit": flip,
    "bytes": overwrite,
    "cut": cut,
    "longer": grow,
}


# --- JSON


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:200]:
        yield value, key
        yield from _nodes(inner)


def edit_json(value: Any, drawn: random.Random) -> str:
    """Change one value, key or length inside a JSON value; return its text."""
    nodes = list(_nodes(value))
    if not nodes or drawn.random() < 0.02:
        return _dump(drawn.choice(VALUES))
    place, key = drawn.choice(nodes)
    raw, kind = '"@RAW@"', drawn.choice(("value", "value", "value", "raw", "near", "drop", "rename", "repeat", "swap"))
    if kind == "drop":
        del place[key]
    elif kind == "rename" and isinstance(place, dict):
        place[drawn.choice((f"{key}x", "", key.upper(), "checksum"))] = place.pop(key)
    elif kind == "repeat" and isinstance(place, list):
        place.insert(key, place[key])
    elif kind == "swap":
        place[key] = copy.deepcopy(drawn.choice(nodes)[0])
    elif kind == "near" and isinstance(place[key], int | float):
        place[key] += drawn.choice((1, -1, 0.5, 10**7, -(10**7)))
    elif kind == "near" and isinstance(place[key], str) and place[key]:
        place[key] = drawn.choice((place[key][:-1], place[key] + "x", place[key].upper(), place[key] * 2))
    elif kind == "raw":
        place[key], raw = "@RAW@", drawn.choice(RAW)
    else:
        place[key] = drawn.choice(VALUES)
    return _dump(value).replace('"@RAW@"', raw)


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def json_file(data: bytes, drawn: random.Random) -> bytes:
    """Edit a JSON file; sometimes give one of its keys twice."""
    text = edit_json(json.loads(data), drawn)
    if drawn.random() < 0.05:
        lines = text.splitlines()
        line = drawn.randrange(len(lines))
        text = "\n".join([*lines[:line], lines[line], *lines[line:]])
    return text.encode("utf-8", "backslashreplace")


def json_lines(data: bytes, drawn: random.Random) -> bytes:
    """Edit one line of JSON, or drop, repeat or move lines."""
    lines = data.decode().splitlines()
    place, kind = drawn.randrange(len(lines)), drawn.choice(("edit", "edit", "edit", "drop", "repeat", "move"))
    if kind == "edit":
        lines[place] = " ".join(edit_json(json.loads(lines[place]), drawn).split())
    elif kind == "drop":
        del lines[place]
    elif kind == "repeat":
        lines.insert(place, lines[place])
    else:
        lines.insert(drawn.randrange(len(lines)), lines.pop(place))
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


# --- YAML, arrays, safetensors


def yaml_file(data: bytes, drawn: random.Random) -> bytes:
    """Change, drop, repeat or indent a line of YAML."""
    lines = data.decode().splitlines()
    place = drawn.randrange(len(lines))
    key, colon, _ = lines[place].partition(":")
    kind = drawn.choice(("value", "value", "value", "include", "drop", "repeat", "indent", "key", "long", "bytes"))
    if kind == "value":
        lines[place] = f"{key}{colon} {drawn.choice(YAML)}"
    elif kind == "include":
        lines = [line for line in lines if not line.startswith("include")] + [f"include: {drawn.choice(INCLUDES)}"]
    elif kind == "drop":
        del lines[place]
    elif kind == "repeat":
        lines.insert(place, lines[place])
    elif kind == "indent":
        lines[place] = drawn.choice((" ", "\t", "        ", "- ")) + lines[place]
    elif kind == "key":
        lines[place] = f"{drawn.choice(YAML)}{colon} 1"
    elif kind == "long":
        lines += [f"key{number}: 1" for number in range(drawn.choice((10, 100_000)))]
    else:
        lines[place] += drawn.choice(("\x85", "\ufeff", "\u2028", "\0"))
    return "\n".join(lines).encode()


def npy_file(data: bytes, drawn: random.Random) -> bytes:
    """Change the header of an array; the data stay."""
    length = struct.unpack("<H", data[8:10])[0]
    header = data[10 : 10 + length].decode("latin-1").strip()
    dtype = drawn.choice(("'|O'", "'<U9'", "'<f8'", "'|b1'", "'<m8[s]'", "[('a', '<i4')]", "'zz'", "__import__('os')"))
    shape = drawn.choice(("(-1,)", "(10**12,)", "(1000000000000,)", "()", "(0,)", "(2, 2)", "(True,)", "(1.5,)", "1"))
    kind = drawn.choice(("descr", "shape", "order", "text"))
    if kind == "descr":
        header = f"{{'descr': {dtype}, {header.partition(', ')[2]}"
    elif kind == "shape":
        header = header[: header.index("(")] + shape + header[header.index(")") + 1 :]
    elif kind == "order":
        header = header.replace("False", drawn.choice(("True", "None", "3")))
    else:
        header = drawn.choice(("", "{}", "[" * 200, header[:-1], header + "}", "x" * 60_000, header.replace("'", '"')))
    encoded = header.encode("latin-1") + b"\n"
    return data[:8] + struct.pack("<H", len(encoded) & 0xFFFF) + encoded + data[10 + length :]


def safetensors_file(data: bytes, drawn: random.Random) -> bytes:
    """Change the header of a safetensors file; the data stay."""
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + length], data[8 + length :]
    if drawn.random() < 0.15:
        return (
            struct.pack("<Q", drawn.choice((0, length - 1, length + 8, len(data), 2**40, 2**63, 2**64 - 1))) + data[8:]
        )
    text = edit_json(json.loads(header), drawn).encode("utf-8", "backslashreplace")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


EDITS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": json_file,
    ".jsonl": json_lines,
    ".yaml": yaml_file,
    ".npy": npy_file,
    ".safetensors": safetensors_file,
}


# --- something else in the place of a file


def replace_file(path: Path, others: list[Path], drawn: random.Random) -> str:
    """Put something else in the place of a file; return what."""
    kind = drawn.choice(("missing", "pipe", "dangling link", "link to a device", "folder", "link", "another file"))
    data = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        other = path.with_name(f".{path.name}.moved")
        other.write_bytes(data)
        path.symlink_to(other)
    elif kind == "another file":
        path.write_bytes(drawn.choice(others).read_bytes() if others else b"")
    return kind


# --- checksums


def reseal(folder: Path, old: dict[str, str], name: str) -> None:
    """Make the checksums of a folder fit a changed file.

    Args:
        folder: the folder.
        old: checksums of its files before the change.
        name: the changed file.

    """
    waiting = [name]
    while waiting:
        changed = folder / waiting.pop()
        _seal_itself(changed)
        before, data = old[changed.relative_to(folder).as_posix()], changed.read_bytes()
        for path in sorted(folder.rglob("*.json")):
            text = path.read_text("utf-8", "surrogateescape") if path.is_file() and path != changed else ""
            if before in text:
                values = json.loads(text)
                _replace(values, before, hashlib.sha256(data).hexdigest(), len(data))
                path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
                waiting.append(path.relative_to(folder).as_posix())


def _seal_itself(path: Path) -> None:
    before, key, after = path.read_bytes().rpartition(b'"checksum": "')
    if key and path.suffix == ".json" and len(after) >= 64:
        sealed = hashlib.sha256(before + key + b"0" * 64 + after[64:]).hexdigest().encode()
        path.write_bytes(before + key + sealed + after[64:])


def _replace(value: Any, before: str, after: str, size: int) -> None:
    for place, key in list(_nodes(value)):
        if place[key] == before:
            place[key] = after
            if isinstance(place, dict) and "num_bytes" in place:
                place["num_bytes"] = size

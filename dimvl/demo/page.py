"""Pieces of an HTML page that needs nothing else: tables, bars, numbers, and the look of it all.

The look is one small style sheet for screens wide and narrow, light and dark, and for paper. Arguments called `content`
and rows of tables are HTML; every other text is escaped here.
"""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #23282d; --quiet: #5b646c; --line: #dfdcd4;
  --accent: #1d6f78; --tint: #e3f0f0; --other: #9aa5ad; --met: #1a6b3c; --unmet: #a8381b; --alarm: #fbe9e3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16191c; --card: #1e2226; --ink: #e6e3dd; --quiet: #a3abb1; --line: #353b41;
    --accent: #58b3ba; --tint: #213a3d; --other: #6d7780; --met: #6ec792; --unmet: #f2957a; --alarm: #3b241d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3 { font-family: ui-serif, Georgia, "Times New Roman", serif; font-weight: 600; line-height: 1.2; }
h1 { font-size: 2.1rem; margin: 0 0 .75rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .9rem; }
h3 { font-size: 1.08rem; margin: 0 0 .6rem; }
p { margin: 0 0 .7rem; }
small, .remark { color: var(--quiet); font-size: .875rem; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.note { font-size: 1.1rem; border-left: 3px solid var(--accent); padding-left: .9rem; max-width: 46rem; }
.verdict { font-size: 1.1rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin: 1.2rem 0 0; }
.facts dt { color: var(--quiet); font-size: .8rem; }
.facts dd { margin: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.columns { columns: 24rem; column-gap: 1rem; }
.columns .card { margin-bottom: 1rem; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1.1rem 1.2rem; margin: 0;
  min-width: 0; break-inside: avoid; overflow-x: auto;
}
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
table + table { margin-top: 1rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { text-align: left; padding: .38rem .6rem .38rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 400; }
thead th { color: var(--quiet); font-size: .8rem; }
tbody tr:last-child > * { border-bottom: 0; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { width: 38%; }
.ours th, .ours .number { font-weight: 650; }
.tint {
  background: linear-gradient(to right, var(--tint) var(--share, 0%), transparent 0) padding-box;
  border-right: .5rem solid transparent; padding-left: .45rem;
}
.bar { position: relative; height: .65rem; min-width: 3.5rem; background: var(--line); border-radius: 2px; }
.bar b { display: block; height: 100%; background: var(--accent); border-radius: 2px; }
.bar.other b { background: var(--other); }
.bar.short b { background: var(--unmet); }
.bar i { position: absolute; top: -.22rem; bottom: -.22rem; width: 2px; background: var(--ink); }
.met, .unmet { white-space: nowrap; font-weight: 600; font-size: .9rem; color: var(--met); }
.unmet { color: var(--unmet); background: var(--alarm); border-radius: 4px; padding: .1rem .4rem; }
figure svg { width: 100%; height: auto; display: block; }
.keys, .chips { list-style: none; padding: 0; margin: .5rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; }
.keys { font-size: .85rem; }
.key {
  display: inline-block; width: .9rem; height: .25rem;
  border-radius: 2px; margin-right: .4rem; vertical-align: middle;
}
.chips { gap: .35rem; margin-bottom: .7rem; }
.chips li {
  border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .6rem;
  white-space: normal; font-weight: 400;
}
.example {
  display: grid; grid-template-columns: minmax(0, 27rem) minmax(0, 1fr);
  gap: .5rem 1.6rem; margin-bottom: 1.4rem;
}
.example h3, .asked { grid-column: 1 / -1; }
.example > img { width: 100%; display: block; border-radius: 4px; }
.caption { font: italic 1.2rem/1.4 ui-serif, Georgia, "Times New Roman", serif; }
details { margin: .5rem 0; font-size: .9rem; }
summary { cursor: pointer; color: var(--quiet); }
details ul, details ol { margin: .3rem 0; padding-left: 1.6rem; }
.asked { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); gap: .4rem 1.6rem; }
.question {
  display: flex; gap: 1rem; align-items: start;
  border-top: 1px solid var(--line); padding-top: .9rem; break-inside: avoid;
}
.question > img { width: 8.5rem; flex: none; border-radius: 4px; }
.question > div { flex: 1; min-width: 0; }
.question p { margin: 0 0 .35rem; }
.answers { font-size: .88rem; }
.answers th, .answers td { border: 0; padding: .08rem .6rem .08rem 0; overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  main { padding-top: 1.5rem; }
  .example { grid-template-columns: minmax(0, 1fr); }
  .question > img { width: 6rem; }
  th, td { padding-right: .4rem; }
  .wide { width: 22%; }
}
@media (max-width: 30rem) {
  section > table .wide { display: none; }
}
@media print {
  :root { --paper: #fff; }
  body { font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
}
"""

_ABBREVIATIONS = {"vqa", "ap50", "lm", "kl", "gb"}


def page(title: str, content: str) -> str:
    """Make the whole example."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>{content}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """Put a heading over content."""
    return f"<section><h2>{title}</h2>{content}</section>\n"


def table(headers: Sequence[str], rows: Sequence[str], caption: str = "") -> str:
    """Make a table of rows given as `<tr>` elements; an empty header heads a column of bars or remarks."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' if name else '<td class="wide"></td>' for name in headers)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def bar(share: float, *, mark: float | None = None, kind: str = "") -> str:
    """A bar of that share of its place, with a mark at another; the number beside it says it in words."""
    tick = "" if mark is None else f'<i style="left:{_percent(mark)}"></i>'
    return f'<div class="bar {kind}" aria-hidden="true"><b style="width:{_percent(share)}"></b>{tick}</div>'


def cell(value: Any) -> str:
    """A number with a tint as wide as the fraction it is."""
    fraction = isinstance(value, float) and 0 <= value <= 1
    tint = f' style="--share:{_percent(value)}"' if fraction else ""
    return f'<td class="number tint"{tint}>{escape(number(value))}</td>'


def number(value: Any) -> str:
    """Three decimals for fractions, fewer for larger numbers, words as they are."""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return "not measured" if value is None else str(value)


def words(name: str) -> str:
    """A key of the results as words, abbreviations in capitals."""
    parts = re.split(r"[_/ ]+", name)
    text = " ".join(part.upper() if part in _ABBREVIATIONS else part for part in parts)
    return text[:1].upper() + text[1:]


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%"

"""The frame of a page for a browser: its style, and no external resources."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --dim: #57606a; --line: #d0d7de; --paper: #ffffff; --soft: #f3f5f8;
  --one: #0072b2; --two: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --dim: #9aa4b0; --line: #3a424c; --paper: #14181d;
  --soft: #1e242b; --one: #4aa8e0; --two: #f0b840; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .25rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: .35rem 0 .75rem; }
.dim { color: var(--dim); font-size: .92rem; }
.conclusion { background: var(--soft); border-left: 4px solid var(--one); padding: .75rem 1rem; margin: 1rem 0; }
.conclusion p { margin: .25rem 0; }
.problem { border-left: 4px solid var(--two); background: var(--soft); padding: .5rem 1rem; margin: .5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .6rem; text-align: right; }
th { font-weight: 600; }
tbody th, thead th:first-child, .words { text-align: left; }
.plain td, .plain th { border-bottom: 1px solid var(--line); }
.heat td { min-width: 3.5rem; text-align: center; border: 2px solid var(--paper); line-height: 1.25; }
.heat thead th { text-align: center; }
.heat small { display: block; opacity: .8; font-size: .75rem; white-space: nowrap; }
.plain td:not(.words) { white-space: nowrap; }
.heat.many td { min-width: 1.4rem; height: 1.4rem; padding: 0; }
.heat.many thead th { writing-mode: vertical-rl; text-align: left; padding: .3rem 0; }
.chip { display: inline-block; background: var(--soft); border: 1px solid var(--line); border-radius: .5rem;
  padding: 0 .5rem; margin: .1rem .25rem .1rem 0; }
.bars { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr max-content; gap: .2rem .6rem;
  align-items: center; font-variant-numeric: tabular-nums; }
.bars .track { background: var(--soft); height: .95rem; }
.bars .fill { height: 100%; background: var(--one); }
.bars .fill.two { background: var(--two); }
.bars .gap { grid-column: 1 / -1; height: .35rem; }
.key { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; vertical-align: -.05rem; }
.key.one { background: var(--one); } .key.two { background: var(--two); }
figure { margin: .5rem 0; }
svg { max-width: 100%; height: auto; }
summary { cursor: pointer; }
@media (max-width: 30rem) { body { padding: 1rem .75rem 2rem; } th, td { padding: .3rem .4rem; }
  .bars { grid-template-columns: minmax(4.5rem, 7.5rem) 1fr max-content; gap: .2rem .4rem; font-size: .9rem; } }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: as text.
        body: parts of it, as HTML.
    """
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )

#!/usr/bin/env python3
"""A bar chart of ratios as SVG, readable on light and dark pages.

    benches/chart.py docs/performance.md > docs/performance.svg      # of its tables of bk's time by a peer's, with goals
"""

import re, sys
from xml.sax.saxutils import escape

LABEL, WIDTH, LINE = 430, 420, 24
STYLE = """
text { font: 13px sans-serif; fill: #1f2328 } .bar { fill: #2f6fd0 } .slow { fill: #c2620e } .one { stroke: #6e7781 } .goal { stroke: #1a7f37; stroke-width: 3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .bar { fill: #6aa3ff } .slow { fill: #f0a35e } .one { stroke: #8b949e } .goal { stroke: #56d364 } }
"""


def svg(title, rows):
    """`rows` are (name, ratio, goal or None): bk's time by its peer's."""
    most = max([1.2] + [ratio for _, ratio, _ in rows] + [goal or 0 for *_, goal in rows])
    at = lambda ratio: LABEL + ratio / most * WIDTH
    bottom = 34 + LINE * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + WIDTH + 60}" height="{bottom + 30}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text x="{LABEL}" y="20">{escape(title)}</text>',
    ]
    for n, (name, ratio, goal) in enumerate(rows):
        y = 34 + LINE * n
        kind = "bar" if ratio <= (goal or 1) else "slow"
        lines.append(f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<rect class="{kind}" x="{LABEL}" y="{y + 3}" width="{at(ratio) - LABEL:.1f}" height="{LINE - 8}"/>')
        lines.append(f'<text x="{at(max(ratio, goal or 0)) + 6:.1f}" y="{y + 14}">{ratio:.2f}</text>')
        if goal:
            lines.append(f'<line class="goal" x1="{at(goal):.1f}" x2="{at(goal):.1f}" y1="{y}" y2="{y + LINE - 2}"/>')
    lines.append(f'<line class="one" x1="{at(1):.1f}" x2="{at(1):.1f}" y1="28" y2="{bottom}" stroke-dasharray="4 3"/>')
    lines.append(f'<text x="{at(1):.1f}" y="{bottom + 16}" text-anchor="middle">as fast as the peer</text></svg>')
    return "\n".join(lines) + "\n"


def tables(text):
    """The rows of all tables that have a peer, a ratio of times and a goal."""
    columns = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            columns = None
        elif columns is None:
            columns = {name: n for n, name in enumerate(cells)}
        elif "what / peer" in columns and "goal" in columns:
            ratio = re.match(r"\d+\.\d+", cells[columns["ratio, median (min–max)"]]) if not cells[0].startswith("---") else None
            if ratio:
                name = re.sub(r"[`\\]", "", cells[0])
                goal = re.match(r"\d+\.\d+", cells[columns["goal"]])
                yield name if len(name) < 62 else name[:60] + "…", float(ratio[0]), float(goal[0]) if goal else None


if __name__ == "__main__":
    sys.stdout.write(svg("Time of bk by its peer's, median; the green marks are goals", list(tables(open(sys.argv[1]).read()))))

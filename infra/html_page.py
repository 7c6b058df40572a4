"""A page of HTML that needs no other file, and text made safe to stand in it."""

import html

from infra.cli import visible

STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5; font-family: system-ui,
  "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  color: #222; background: #fff; }
h1 { margin: 2.5rem 0 0; } h2 { margin: 2rem 0 .5rem; border-bottom: 1px solid #8888; }
pre, .document { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .8rem;
  border: 1px solid #8888; border-radius: 4px; } pre { font-size: .85rem; }
.flag { display: inline-block; }
table { border-collapse: collapse; margin: .5rem 0; display: block; overflow-x: auto; }
.numbers th, .numbers td { white-space: nowrap; }
th, td { border: 1px solid #8888; padding: .2rem .6rem; text-align: left; vertical-align: top; }
td { white-space: pre-wrap; overflow-wrap: anywhere; } .numbers td { text-align: right; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption, .note { font-size: .85rem; opacity: .8; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; }
.document { line-height: 2; } .document span { margin: 0 1px; padding: 0 1px; unicode-bidi: isolate; }
.ignored { opacity: .65; } .counted { border-bottom: 2px solid #2e9e6b; }
.tag { border: 2px solid #a05fc0; font-weight: bold; } .cut-off { text-decoration: line-through #c0504d; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } }
@media print { body { color: #000; background: #fff; max-width: none; margin: 0; font-size: 10pt; }
  .charts { grid-template-columns: 1fr 1fr; } figure, tr, .numbers, .facts { break-inside: avoid; }
  h1, h2, pre, .note { break-after: avoid; } .stage { break-before: page; } }
"""


def page(title: str, body: str) -> str:
    """A whole page. body: HTML."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{safe(title)}</title><style>{STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>{body}</main></body></html>\n'


def body_of(page: str) -> str:
    """What stands in a page that `page` made, to stand in another one."""
    return page.partition("<main>")[2].rpartition("</main>")[0]


def safe(text) -> str:
    """Text that is no markup, its control characters visible. A file's name may hold half a character."""
    return html.escape(visible(str(text).encode("utf-8", "replace").decode()))


def element(name: str, text, css: str = "") -> str:
    """element("td", "a<b", "counted") -> '<td class="counted">a&lt;b</td>'"""
    return f"<{name}" + f' class="{css}"' * bool(css) + f">{safe(text)}</{name}>"


def table(head: list[str], rows: list[list], css: str = "") -> str:
    """Rows whose first cell is a heading."""
    top = "".join(element("th", cell) for cell in head)
    lines = [element("th", first) + "".join(element("td", cell) for cell in rest) for first, *rest in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<table class="{css}"><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>\n'


def charts(pictures: list[tuple[str, str]]) -> str:
    """(SVG, caption) of each picture, in two columns where there is room."""
    figures = "".join(f"<figure>{svg}{element('figcaption', told)}</figure>\n" for svg, told in pictures)
    return f'<div class="charts">{figures}</div>\n'

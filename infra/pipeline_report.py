"""report.html of a run of many stages: their numbers, what they say, and the whole page of each."""

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from infra.files import write_text
from infra.html_page import body_of, element, page, safe, table
from infra.metrics import number_text

WHAT = (
    "Reasoning accuracy: right answers to held-out problems. Well formed: one thought, then one answer. "
    "Facts: right answers to questions that are part of the training."
)


class Tee(io.StringIO):
    """Keeps what is written and passes it on, to a terminal in its colours."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


def heard(tell: Callable, *args) -> str:
    """What `tell(*args)` prints, which is printed all the same."""
    with redirect_stdout(Tee(sys.stdout)) as told:
        tell(*args)
    return re.sub(r"\033\[[\d;]*m", "", told.getvalue())


def write_pipeline_report(folder: Path, rows: dict[str, dict], columns, told: str, stages: list[str]) -> Path:
    """Write report.html into `folder` and return its path.

    rows: numbers by stage; told: the stages' conversations; stages: their folders, below `folder`.
    """
    head = ["stage", *(name.replace("_", " ") for name in columns)]
    cells = [[name, *(number_text(key, row.get(key, "-")) for key in columns)] for name, row in rows.items()]
    parts = [element("h1", f"{folder.name}: all stages"), table(head, cells, "numbers")]
    parts.append(element("p", WHAT, "note"))
    parts += ["<h2>Conversations</h2>", element("pre", told.strip()), "<h2>Stages</h2>"]
    paths = [folder / stage / "report.html" for stage in stages]
    paths = [path for path in paths if path.is_file()]  # earlier versions wrote none
    names = [safe(path.parent.name) for path in paths]
    links = ", ".join(f'<a href="{name}/report.html">{name}</a>' for name in names)
    parts.append(f"<p>Each is below, and in its own folder: {links}</p>")
    for path in paths:
        parts.append(f'<section class="stage">{body_of(path.read_text(encoding="utf-8"))}</section>')
    write_text(folder / "report.html", page(f"{folder}", "".join(parts)))
    return folder / "report.html"

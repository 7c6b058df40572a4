"""report.html of a run of many stages: their numbers, what they say, and the whole page of each."""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from infra.files import write_text
from infra.html_page import body_of, element, page, safe, table
from infra.metrics import number_text


class Tee(io.StringIO):
    """Keeps what is written and passes it on."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.stream.flush()


def heard(tell: Callable, *args) -> str:
    """What `tell(*args)` prints, which is printed all the same."""
    with redirect_stdout(Tee(sys.stdout)) as told:
        tell(*args)
    return told.getvalue()


def write_pipeline_report(
    folder: Path, rows: dict[str, dict], columns: tuple, told: str, stages: dict
) -> Path:
    """Write report.html, of which it returns the path.

    rows: of numbers, by stage; told: the stages' conversations; stages: the folder of each, below `folder`.
    """
    body = [[name, *cell_texts(row, columns)] for name, row in rows.items()]
    parts = [element("h1", folder.name), table(["stage", *map(words, columns)], body, "numbers")]
    parts += ["<h2>Conversations</h2>", element("pre", told.strip())]
    pages = {name: folder / stage / "report.html" for name, stage in stages.items()}
    pages = {name: path for name, path in pages.items() if path.is_file()}  # none of an interrupted upgrade
    links = [
        f'<a href="{safe(path.relative_to(folder).as_posix())}">{safe(name)}</a>'
        for name, path in pages.items()
    ]
    parts += ["<h2>Stages</h2>", f"<p>Each is below, and on a page of its own: {', '.join(links)}</p>"]
    for path in pages.values():
        parts.append(f'<section class="stage">{body_of(path.read_text(encoding="utf-8"))}</section>')
    write_text(folder / "report.html", page(f"{folder}", "".join(parts)))
    return folder / "report.html"


def cell_texts(row: dict, columns: tuple) -> list[str]:
    return [number_text(name, row[name]) if name in row else "-" for name in columns]


def words(name: str) -> str:
    return name.replace("_", " ")

"""report.json: what a run of many parts has finished, so that the same command again redoes none of it."""

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

from infra.cli import UserError
from infra.files import write_json
from infra.metrics import number_text


class Report:
    """The parts of a run by name, written anew after each.

    anew: how to start over, for the message when the settings differ from the stored ones; `may_change` names
    the settings that may differ.
    """

    def __init__(self, folder: Path, settings: dict, anew: str, may_change: tuple[str, ...] = ()):
        self.path = folder / "report.json"
        self.parts = {"settings": settings, "seconds": 0.0}
        try:
            if self.path.is_file():
                self.parts = json.loads(self.path.read_text(encoding="utf-8"))
            stored = dict(self.parts["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: not a whole report ({error}): {anew} to start over") from None
        for name in {**settings, **stored}:
            if name not in may_change and stored.get(name) != settings.get(name):
                found = f"found a run with {name} {stored.get(name)}, here it is {settings.get(name)}"
                raise UserError(
                    f"{self.path}: {found}: use the same, another --out_dir, or {anew} to start over"
                )
        self.parts["settings"] = settings

    def do(self, name: str, title: str, work) -> bool:
        """Put what `work()` returns under `name`, unless it is there. Returns whether it was done now."""
        if name in self.parts:
            print(f"=== {title}: done before")
            return False
        print(f"=== {title}", flush=True)
        start = time.perf_counter()
        try:
            result = work()
        except BaseException:
            if self.path.is_file():  # time that was spent, if there is a run that it was spent on
                with suppress(OSError):  # a full disk, say, which is what ended it
                    self.add_seconds(time.perf_counter() - start)
            raise
        seconds = time.perf_counter() - start
        self.parts[name] = {**result, "seconds": round(seconds, 1)}
        self.add_seconds(seconds)
        return True

    def forget(self, *names: str) -> None:
        """Let the next run do these parts again."""
        self.parts = {name: part for name, part in self.parts.items() if name not in names}
        if self.path.is_file():
            self.write()

    def add_seconds(self, seconds: float) -> None:
        self.parts["seconds"] = round(self.parts["seconds"] + seconds, 1)
        self.write()

    def write(self) -> None:
        write_json(self.path, self.parts)


def make_folder(folder: Path, fresh: bool) -> None:
    """Make the folder; with `fresh`, delete it first. Raises UserError if what it holds is not a run's."""
    if fresh and folder.is_dir():
        if any(folder.iterdir()) and not (folder / "report.json").is_file():
            advice = "so --fresh does not delete it: delete it yourself, or pass another --out_dir"
            raise UserError(f"{folder}: found no report.json in it, {advice}")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def print_table(rows: dict[str, dict], columns: tuple[str, ...]) -> None:
    """Print named rows of numbers as a table. A missing value is a dash."""
    print("\n" + " " * 10 + "".join(f"  {name.replace('_', ' '):>8}" for name in columns))
    for title, row in rows.items():
        cells = [(name, number_text(name, row[name]) if name in row else "-") for name in columns]
        print(f"{title:<10}" + "".join(f"  {cell:>{max(8, len(name))}}" for name, cell in cells))

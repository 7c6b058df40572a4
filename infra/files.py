"""Files that are there whole or not at all, and disk errors that name the file."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush the file to the disk, then rename it to `path`.

    Raises OSError, naming the file, when the disk is full or refuses; what stood at `path` before stays.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with named_disk_errors(path):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of a text in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value) -> None:
    """`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def named_disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors in writing `path` into one line with its name and advice."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides the system's error behind a RuntimeError
        system = error if isinstance(error, OSError) else error.__context__
        if not isinstance(system, OSError):
            raise
        advice = "fix this, then rerun"
        if system.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free / 1e6
            advice = f"{free:.0f} MB are free: make room, then rerun"
        reason = system.strerror or system
        raise OSError(
            f"{path} could not be written ({reason}); {advice}, a training script with --resume"
        ) from None


def existing_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path

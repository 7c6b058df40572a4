"""Locks between processes, which the system releases when their holder dies."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from infra.cli import UserError
from infra.files import named_disk_errors


@contextmanager
def locked(path: Path, what: str, is_done: Callable[[], bool]) -> Iterator[None]:
    """Only one process at a time is inside. The system releases the lock when its process ends, however that
    is.

    The lock's file is removed once `is_done()`: before that, others may be waiting for it.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for another process, which is {what}", file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        advice = "pass --cache_dir with a folder on a local disk"
        raise UserError(f"{path} cannot be locked ({error}): {advice}") from None
    try:
        yield
    finally:
        if is_done():
            with suppress(OSError):  # Windows deletes no open file
                os.unlink(path)
        lock.release()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """This process alone writes into a folder. Raises UserError, which names the other, where one does.

    Some network disks have no locks: there, one line says that two runs would not be told apart.
    """
    with named_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock"), folder / ".lock.holder"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        other = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
        advice = "wait for it, or pass another --out_dir"
        raise UserError(f"{folder}: {other} is training into it: {advice}") from None
    except (OSError, NotImplementedError) as error:
        print(f"{folder} cannot be locked ({error}): start no second run into it", file=sys.stderr)
    try:
        if lock.is_locked:
            holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        if lock.is_locked:
            for path in (holder, folder / ".lock"):
                with suppress(OSError):  # Windows deletes no open file
                    path.unlink()
            lock.release()

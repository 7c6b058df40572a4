"""A lock between processes, which the system releases when its holder dies."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from infra.cli import UserError


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

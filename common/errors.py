"""Errors a user can act on."""

import errno
import shutil
from pathlib import Path

STOPPED = 75  # exit code (EX_TEMPFAIL) of a run that saved its state because it was asked to stop
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*NO_ROOM, errno.EACCES, errno.EPERM, errno.EROFS)


class UserError(Exception):
    """Something outside the program is wrong: one line that says what, and what to do about it."""


class Stopped(Exception):
    """SIGTERM or SIGUSR1 asked a run to stop; what it had is saved."""


def no_room(folder: Path, needed: int | None = None) -> str:
    """How much space is missing below a folder, in words; without `needed` bytes, how much is left."""
    free = shutil.disk_usage(folder).free
    if needed is None:
        return f"the disk is full ({free / 2**20:.1f} MiB are free)"
    if needed <= free:  # a quota, or a limit on one file: only the system knows it
        return f"{needed / 2**20:.1f} MiB are more than is allowed here"
    return f"the disk is full, {(needed - free) / 2**20:.1f} of {needed / 2**20:.1f} MiB are missing"

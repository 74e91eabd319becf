"""The lock of a run's folder, which goes when its process does, however it ends."""

import errno
import fcntl
import os
import pathlib

# What a file system says that locks no folders.
_NO_LOCK = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def lock(folder: pathlib.Path) -> list[int]:
    """Locks a folder, and the file that says so to others.

    The lock of the folder holds when somebody removes the file; a network's file system
    may have none of folders.

    Returns:
      File descriptors, which hold the locks until they are closed.

    Raises:
      BlockingIOError: another process holds one.
    """
    held = []
    try:
        held.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCK:
                raise
        held.append(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644))
        fcntl.flock(held[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        for one in held:
            os.close(one)
        raise
    return held

"""Writing that never leaves half a file.

The text goes to a temporary file in the same folder, is flushed to the disk, and takes the final name in
one step; a crash at any point leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from refica.files.messages import PathLike, printable_path, reason_of

__all__ = ["OutputError", "prepare_folder", "write_text_atomically"]

_ADVICE = {
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EEXIST: "a file of that name is in the way; choose another name",
    errno.ENOTDIR: "a part of that path is a file; choose another name",
    errno.EISDIR: "a folder of that name is in the way; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class OutputError(OSError):
    """A file or folder cannot be written; one line says which, why and what to do."""


def prepare_folder(path: PathLike) -> Path:
    """Create the folder ``path`` with its parents, and make sure that files can be written to it.

    Meant to be called before a long computation, so that it cannot be lost at its end.

    Parameters
    ----------
    path : path
        A folder; it may exist already.

    Returns
    -------
    pathlib.Path
        The same folder.

    Raises
    ------
    OutputError
        If it cannot be created or written to.
    """
    folder = Path(path)
    with _output_errors(folder, "write to the folder"):
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell (read-only mounts, quotas, being root): only trying does.
        probe = _temporary_name(folder)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)
    return folder


def write_text_atomically(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8 so that ``path`` holds either all of it or what it held before.

    The parent folder is created if it is missing. An existing file keeps its permissions, and a
    symbolic link its target.

    Parameters
    ----------
    path : path
        The file; it is replaced if it exists.
    text : str
        Its content. Line ends are written as they are.

    Raises
    ------
    OutputError
        If the file or its folder cannot be written, or ``path`` is a device or a pipe (which cannot be
        replaced as a whole).
    """
    content = text.encode("utf-8")
    with _output_errors(path, "write"):
        target = Path(os.path.realpath(path))
        mode = _mode_of_existing(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(target.parent)
        try:
            # "x" gives the permissions of any new file; the tempfile module would make it private.
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                # Without this the new name can reach the disk before the content does.
                os.fsync(stream.fileno())
            if mode is not None:
                temporary.chmod(mode)
            os.replace(temporary, target)
        finally:  # after a success there is nothing left to remove
            temporary.unlink(missing_ok=True)


def _temporary_name(folder: Path) -> Path:
    # Not made from the final name, which may be as long as names can be.
    return folder / f".{secrets.token_hex(8)}.tmp"


def _mode_of_existing(path: PathLike) -> int | None:
    """Return the permission bits of the file at ``path``, or None if there is none; see that it may go."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(mode):
        # To replace /dev/null by a file of that name is possible for root, and a disaster.
        raise OSError(errno.EINVAL, "Not a regular file")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "The existing file is read-only")
    return stat.S_IMODE(mode)


@contextlib.contextmanager
def _output_errors(path: PathLike, verb: str) -> Iterator[None]:
    """Turn an OSError inside the block into one line: what, where, why, what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "choose another place")
        raise OutputError(f"cannot {verb} {printable_path(path)}: {reason_of(error)}; {advice}") from error

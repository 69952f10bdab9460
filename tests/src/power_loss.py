"""Folders as a machine that loses power now would have them: without what the kernel has not written to the disk.

    python3 power_loss.py note <then> <folder>...          # earlier: writes everything to the disk, and keeps a copy
    python3 power_loss.py cut <then> <to> <folder>...      # copies what is left, and says how many bytes are not

A page that is not on the disk is as it was when it was noted; where there was none then, the file ends. A file that was
made since, or put in another's place, ends at the first such page. Names of files count as written. Exit code 3: the
kernel (before Linux 6.5) or the file system does not say what is written.
"""

import ctypes
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

CACHESTAT = 451
PAGE = os.sysconf("SC_PAGE_SIZE")
CANNOT_TELL = 3
LIBC = ctypes.CDLL(None, use_errno=True)


class Range(ctypes.Structure):
    """`struct cachestat_range`."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("off", "len")]


class Stat(ctypes.Structure):
    """`struct cachestat`: pages."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")]


def unwritten(file: int, start: int, length: int) -> int:
    """How many pages of a range are not on the disk; a length of 0 is to the end."""
    wanted, found = Range(start, length), Stat()
    if LIBC.syscall(CACHESTAT, file, ctypes.byref(wanted), ctypes.byref(found), 0):
        raise OSError(ctypes.get_errno(), "cachestat")
    return found.dirty + found.writeback


def can_tell(folder: Path) -> bool:
    """Whether what was just written is said not to be on the disk, and what was synced to be."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            file.write(b"x" * PAGE)
            file.flush()
            before = unwritten(file.fileno(), 0, 0)
            os.fsync(file.fileno())
            return before > 0 and unwritten(file.fileno(), 0, 0) == 0
        except OSError:
            return False


def note(then: Path, folders: list[Path]) -> None:
    """Writes everything to the disk, and keeps what is there."""
    inodes = {}
    for path, copy in files(then, folders):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        shutil.copy2(path, copy)
        inodes[str(path)] = path.stat().st_ino
    (then / "inodes.json").write_text(json.dumps(inodes))


def cut(then: Path, to: Path, folders: list[Path]) -> int:
    """Copies what is on the disk; how many bytes are not."""
    inodes = json.loads((then / "inodes.json").read_text())
    # First what is written of every file, all at once: the kernel writes on while files are copied.
    missing = {path: pages_missing(path) for path, _ in files(to, folders)}
    lost = 0
    for path, copy in files(to, folders):
        shutil.copy2(path, copy)
        noted = then / copy.relative_to(to)
        before = noted.read_bytes() if inodes.get(str(path)) == path.stat().st_ino else b""
        with copy.open("r+b") as file:
            for start in missing[path]:
                lost += PAGE
                old = before[start : start + PAGE]
                file.seek(start)
                file.write(old)
                if len(old) < PAGE:
                    file.truncate(start + len(old))
                    break
    return lost


def pages_missing(path: Path) -> list[int]:
    """Where the pages begin that are not on the disk."""
    with path.open("rb") as file:
        number = file.fileno()
        if unwritten(number, 0, 0) == 0:
            return []
        return [start for start in range(0, os.fstat(number).st_size, PAGE) if unwritten(number, start, PAGE)]


def files(to: Path, folders: list[Path]) -> list[tuple[Path, Path]]:
    """Every file, and where its copy goes; every folder is there already, empty ones too."""
    found = []
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            copy = to / folder.name / path.relative_to(folder)
            if path.is_dir():
                copy.mkdir(parents=True, exist_ok=True)
            elif path.is_file():
                found.append((path, copy))
    return found


def main() -> int:
    """Does what it is told."""
    verb, then, *rest = sys.argv[1], *map(Path, sys.argv[2:])
    if verb == "note":
        then.mkdir(parents=True)
        if not can_tell(then):
            return CANNOT_TELL
        note(then, rest)
    else:
        print(cut(then, rest[0], rest[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

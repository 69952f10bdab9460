"""Environments with pinned packages, made once and kept in Writ's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

INSTALL_SECONDS_MAX = 900


def cache(part: str) -> Path:
    """A folder of Writ's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "writ" / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fresh(folder: Path, recipe: bytes) -> bool:
    """Whether a folder was finished by this very recipe; if not, it is emptied."""
    mark = folder / ".finished"
    if mark.exists() and mark.read_text() == hashlib.sha256(recipe).hexdigest():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def finish(folder: Path, recipe: bytes) -> None:
    """Says that a folder is finished, so that the next run takes it as it is."""
    (folder / ".finished").write_text(hashlib.sha256(recipe).hexdigest())


def python(folder: Path, requirements: Path) -> Path:
    """The interpreter of an environment with exactly these packages, made in this folder unless it is there."""
    recipe = requirements.read_bytes() + sys.version.encode()
    interpreter = folder / "bin" / "python"
    if not fresh(folder, recipe):
        print(f"installing into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=INSTALL_SECONDS_MAX)
        # The file names every package there is, so that nothing is left to be resolved.
        install = [str(interpreter), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement"]
        subprocess.run([*install, str(requirements)], check=True, timeout=INSTALL_SECONDS_MAX)
        finish(folder, recipe)
    return interpreter

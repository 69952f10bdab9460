"""One case: an export and what a verifier has to find in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tamper
from story import Story


@dataclass(frozen=True)
class Case:
    """An export of a story, and what has to be found in it."""

    story: Story
    codes: tuple[str, ...] = ()
    task: str | None = None
    receipts: str = ""
    heads: str = ""
    # What is done to the export afterwards.
    spoil: Callable[[Path], None] | None = None

    def write(self, folder: Path) -> None:
        """The case's folder."""
        self.story.export(folder / "export", self.task)
        if self.spoil:
            self.spoil(folder / "export")
            tamper.relist(folder / "export")
        if self.receipts:
            (folder / "receipts").write_text(self.receipts)
        if self.heads:
            (folder / "heads").write_text(self.heads)
        expect(folder, self.codes)


def expect(folder: Path, codes: tuple[str, ...]) -> None:
    """Says what has to be found."""
    (folder / "expected.json").write_text(json.dumps(codes) + "\n")

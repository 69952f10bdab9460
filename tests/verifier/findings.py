"""What a verifier found, and how bad it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FAULT, WARNING, NOTE = "fault", "warning", "note"

# What a code means if nothing else is said; deploy/evidence.md has the table.
SEVERITY = {
    "approval.binding": FAULT,
    "approval.missing": FAULT,
    "approval.reused": FAULT,
    "approval.signature": FAULT,
    "archive.manifest": FAULT,
    "control.order": FAULT,
    "control.signature": FAULT,
    "file.digest": FAULT,
    "intent.open": NOTE,
    "intent.without_outcome": FAULT,
    "log.abandoned": WARNING,
    "log.after_close": FAULT,
    "log.fork": FAULT,
    "log.rolled_back": FAULT,
    "log.signature": FAULT,
    "log.tiles": FAULT,
    "log.unwitnessed": FAULT,
    "policy.never_active": FAULT,
    "proof.malformed": FAULT,
    "receipt.signature": FAULT,
    "receipt.without_record": FAULT,
    "record.archived": NOTE,
    "record.changed": FAULT,
    "record.fork": FAULT,
    "record.forged": FAULT,
    "record.malformed": FAULT,
    "record.missing": FAULT,
    "record.order": FAULT,
    "record.subject": FAULT,
    "root.from_export": WARNING,
}


def visible(text: str) -> str:
    """The text with everything escaped that a terminal might take for a command."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    severity: str
    code: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity} {self.code} {visible(self.where)}: {visible(self.text)}"


@dataclass
class Report:
    """Everything that was found, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    runs: int = 0

    def add(self, code: str, where: object, text: object, severity: str | None = None) -> None:
        """Notes a finding; of another severity than its code's where that is said."""
        self.findings.append(Finding(severity or SEVERITY[code], code, str(where), str(text)))

    def count(self, severity: str) -> int:
        """How many findings are so bad."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "faults": self.count(FAULT),
            "warnings": self.count(WARNING),
            "records": self.records,
            "runs": self.runs,
            "findings": [asdict(finding) for finding in self.findings],
        }

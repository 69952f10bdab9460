#!/usr/bin/env python3
"""Two verifiers of exports, on the same exports: they have to find the same.

    python3 tests/verifier/run.py [--writ target/debug/writ] [--export DIR --root KEY] [--only CASE] [--keep]

Without --writ only the Python one is run. With --export, a real export is verified and tampered with as well. Where
the package `cryptography` is missing, it is installed into an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

if find_spec("cryptography") is None:
    from harness import venvs

    python = venvs.python(venvs.cache("verifier"), HERE / "requirements.txt")
    os.execv(python, [str(python), *sys.argv])

import parts  # noqa: E402
import tamper  # noqa: E402
from synthesize import synthesize  # noqa: E402

SECONDS_MAX = 300
# What `writ` ends with, and this verifier too: no fault, faults.
CODES = {0: False, 1: True}


@dataclass(frozen=True)
class Case:
    """What is verified, and what has to be found."""

    folder: Path
    root: str
    expected: frozenset[str]
    # Whether it was made here, and nothing else may be found. In a real export calls may be under way.
    is_made: bool = True

    @property
    def is_proof(self) -> bool:
        """Whether it is one proof and no export."""
        return (self.folder / "proof.tlog-proof").exists()

    def arguments(self) -> list[str]:
        """The options both verifiers have for it."""
        if self.is_proof:
            inputs = ["--control", str(self.folder / "control.jsonl")]
        else:
            kept = ((name, self.folder / name) for name in ("receipts", "heads"))
            inputs = [item for name, path in kept if path.exists() for item in (f"--{name}", str(path))]
        return [*inputs, "--root", self.root]

    def faults(self, said: dict[str, Any], code: int) -> list[str]:
        """What a verifier's answer has too much or too little."""
        texts = {finding["code"]: f"{finding['where']}: {finding['text']}" for finding in said["findings"]}
        severe = {finding["code"] for finding in said["findings"] if finding["severity"] == "fault"}
        if self.is_made:
            strange = texts.keys() - self.expected
        else:
            # A tampering of a real export may show in more than one way; without one there is no fault.
            strange = set() if self.expected else severe
        faults = [f"does not find {missed}" for missed in sorted(self.expected - texts.keys())]
        faults += [f"finds {found} ({texts[found]})" for found in sorted(strange)]
        counted = sum(finding["severity"] == "fault" for finding in said["findings"])
        if said["faults"] != counted or CODES.get(code) != (counted > 0):
            faults.append(f"counts {said['faults']} faults of {counted}, and ends with {code}")
        return faults


@dataclass
class Verifier:
    """A program that verifies exports and proofs, and what it found in the last one."""

    name: str
    export: list[str]
    proof: list[str]
    json: list[str]
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def verify(self, case: Case) -> list[str]:
        """What is wrong with its answer."""
        self.codes = Counter()
        command, name = (self.proof, "proof.tlog-proof") if case.is_proof else (self.export, "export")
        whole = [*command, str(case.folder / name), *case.arguments(), *self.json]
        run = subprocess.run(whole, capture_output=True, text=True, timeout=SECONDS_MAX)
        try:
            found = json.loads(run.stdout)
            self.codes = Counter((finding["severity"], finding["code"]) for finding in found["findings"])
            return case.faults(found, run.returncode)
        except (ValueError, KeyError, TypeError) as error:
            said = (run.stderr or run.stdout)[-600:]
            return [f"ended with {run.returncode} and no readable answer ({error!r}): {said}"]


def difference(one: Verifier, other: Verifier) -> list[str]:
    """What one verifier found in a case and the other did not. How often is not compared: one finding may name many
    records."""
    pairs = ((one, other), (other, one))
    return [
        f"only {a.name} finds {' '.join(code)}" for a, b in pairs for code in sorted(a.codes.keys() - b.codes.keys())
    ]


def by_python() -> Verifier:
    """The verifier in this folder."""
    program = [sys.executable, str(HERE / "verify.py")]
    return Verifier("python", program, [*program, "--proof"], ["--json"])


def by_writ(writ: str) -> Verifier:
    """The one in the binary."""
    return Verifier("writ", [writ, "audit", "verify"], [writ, "audit", "check-proof"], ["-o", "json"])


def command_line(case: Path) -> list[str]:
    """Without a root's key the export's own is taken and that is said; what makes no sense ends with 64."""
    export, root = str(case / "export"), ["--root", (case.parent / "root").read_text().strip()]
    tried = [
        ([export], 0, "root.from_export"),
        ([], 64, "name the folder of an export"),
        ([str(case / "nothing")], 64, "is no folder"),
        ([export, "--root", "ed25519:00"], 64, "is no root key"),
        ([export, "--proof", "x"], 64, "a proof is verified with"),
        ([export, "--everything"], 64, "unrecognized arguments"),
        ([str(case.parent / "no_manifest" / "export"), *root], 1, "fault file.digest export.json"),
    ]
    faults = []
    for arguments, code, text in tried:
        ran = subprocess.run([sys.executable, str(HERE / "verify.py"), *arguments], capture_output=True, text=True)
        if ran.returncode != code or text not in ran.stdout + ran.stderr:
            faults.append(f"{arguments} ends with {ran.returncode}: {(ran.stdout + ran.stderr)[-300:]}")
    return faults


def cases_of(out: Path) -> list[Case]:
    """Every synthesized case."""
    root = (out / "root").read_text().strip()
    folders = sorted(path.parent for path in out.glob("*/expected.json"))
    return [Case(folder, root, frozenset(json.loads((folder / "expected.json").read_text()))) for folder in folders]


def tampered(export: Path, root: str, out: Path) -> list[Case]:
    """A real export, as it is and tampered with."""
    plain = out / "real"
    shutil.copytree(export, plain / "export")
    for name, why in tamper.make(plain / "export", out).items():
        print(f"{'real ' + name:<34} not made: {why}")
    (plain / "expected.json").write_text("[]\n")
    folders = sorted(path.parent for path in out.glob("*/expected.json"))
    expected = {folder: frozenset(json.loads((folder / "expected.json").read_text())) for folder in folders}
    return [Case(folder, root, codes, is_made=False) for folder, codes in expected.items()]


class Results:
    """What was tried and what was wrong with it; printed as it comes."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def tell(self, what: str, by: str, attempt: Callable[[], list[str]]) -> None:
        """Tries something and prints how it went."""
        began = time.monotonic()
        found = attempt()
        end = "FAIL" if found else "ok"
        print(f"{what:<34} {by:<7} {end:<5} {time.monotonic() - began:5.1f} s", flush=True)
        self.faults += [f"FAULT {what} {by}: {fault}" for fault in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--writ", help="a binary whose verifier has to find the same")
    parser.add_argument(
        "--export", type=Path, help="a real export of everything, to be verified and tampered with too"
    )
    parser.add_argument("--root", help="the root's public key of that export")
    parser.add_argument("--only", help="only the case of this name")
    parser.add_argument("--keep", action="store_true", help="keep the exports that were made")
    options = parser.parse_args()
    if bool(options.export) != bool(options.root):
        parser.error("--export and --root go together")

    verifiers = [by_python()]
    if options.writ:
        verifiers.append(by_writ(options.writ))
    out = Path(tempfile.mkdtemp(prefix="writ-verifier-"))
    results = Results()
    try:
        synthesize(out / "made")
        if not options.only:
            for check in parts.CHECKS:
                results.tell(check.__name__, "python", check)
            good = out / "made" / "good"
            for check_good in (parts.notes, parts.notes_refused, command_line):
                results.tell(check_good.__name__, "python", partial(check_good, good))
        cases = cases_of(out / "made")
        if options.export:
            cases += tampered(options.export, options.root, out / "real")
        for case in cases:
            if options.only in (None, case.folder.name):
                name = case.folder.name if case.is_made else f"real {case.folder.name}"
                for verifier in verifiers:
                    results.tell(name, verifier.name, partial(verifier.verify, case))
                if len(verifiers) > 1:
                    results.tell(name, "both", partial(difference, *verifiers))
    finally:
        if options.keep:
            print(f"kept in {out}")
        else:
            shutil.rmtree(out, ignore_errors=True)
    print("\n".join(results.faults))
    return 1 if results.faults else 0


if __name__ == "__main__":
    sys.exit(main())

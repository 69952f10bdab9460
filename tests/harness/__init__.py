"""What the tests under tests/frameworks and tests/conformance share. Python's standard library only."""

import signal
import sys


def ends_in_order() -> None:
    """Has SIGTERM, as `timeout` sends it, end this program the way an exception does: what it started is ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

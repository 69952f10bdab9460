"""Positions as ranges with both ends."""

from __future__ import annotations

from bisect import bisect_left

Range = tuple[int, int]


def merged(ranges: list[Range]) -> list[Range]:
    """The same positions as ranges that are in order and do not overlap."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def _at(position: int, ranges: list[Range]) -> int:
    """Index of the first of these that ends at a position or behind it."""
    return bisect_left(ranges, position, key=lambda one: one[1])


def holds(position: int, ranges: list[Range]) -> bool:
    """Whether a position is among these, which are in order and do not overlap."""
    at = _at(position, ranges)
    return at < len(ranges) and ranges[at][0] <= position


def outside(wanted: Range, ranges: list[Range]) -> list[Range]:
    """What of a range is not among these, which are in order and do not overlap."""
    found, (begin, end) = [], wanted
    for at in range(_at(begin, ranges), len(ranges)):
        first, last = ranges[at]
        if first > end:
            break
        if first > begin:
            found.append((begin, first - 1))
        begin = last + 1
    return [*found, (begin, end)] if begin <= end else found


def count(ranges: list[Range]) -> int:
    """How many positions there are."""
    return sum(last - first + 1 for first, last in ranges)

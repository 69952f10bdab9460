"""MessagePack, strictly: one byte string per value.

Reads only what Writ writes: maps with text for keys, none twice; whole numbers from 0 on; the shortest form of
everything; nothing after the end. What this reads, `encode` writes again as the same bytes.
"""

from __future__ import annotations

from typing import Any

DEPTH_MAX = 48


class Malformed(Exception):
    """Bytes or a value that are not what they are meant to be. The text says where."""


def decode(data: bytes) -> Any:
    """The one value in `data`: int, bool, None, str, bytes, list or dict."""
    value, end = _value(data, 0, 0)
    if end != len(data):
        raise Malformed(f"{len(data) - end} bytes after the end")
    return value


def _take(data: bytes, at: int, size: int) -> bytes:
    found = data[at : at + size]
    if len(found) != size:
        raise Malformed(f"ends at byte {len(data)}, inside a value")
    return found


def _number(data: bytes, at: int, size: int, least: int) -> tuple[int, int]:
    """A big-endian number of `size` bytes, which would not have fitted into fewer: it is at least `least`."""
    number = int.from_bytes(_take(data, at, size), "big")
    if number < least:
        raise Malformed(f"byte {at}: {number} is not written in its shortest form")
    return number, at + size


def _text(data: bytes, at: int, size: int) -> tuple[str, int]:
    try:
        return _take(data, at, size).decode(), at + size
    except UnicodeDecodeError as error:
        raise Malformed(f"byte {at}: text that is not UTF-8") from error


def _list(data: bytes, at: int, size: int, depth: int) -> tuple[list[Any], int]:
    found = []
    for _ in range(size):
        value, at = _value(data, at, depth + 1)
        found.append(value)
    return found, at


def _map(data: bytes, at: int, size: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    for _ in range(size):
        key, end = _value(data, at, depth + 1)
        if not isinstance(key, str) or key in found:
            raise Malformed(f"byte {at}: a map has a key that is no text, or twice the same one")
        found[key], at = _value(data, end, depth + 1)
    return found, at


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > DEPTH_MAX:
        raise Malformed(f"nested deeper than {DEPTH_MAX}")
    tag = _take(data, at, 1)[0]
    at += 1
    if tag < 0x80:
        return tag, at
    if tag < 0x90:
        return _map(data, at, tag & 0x0F, depth)
    if tag < 0xA0:
        return _list(data, at, tag & 0x0F, depth)
    if tag < 0xC0:
        return _text(data, at, tag & 0x1F)
    match tag:
        case 0xC0:
            return None, at
        case 0xC2 | 0xC3:
            return tag == 0xC3, at
        case 0xC4 | 0xC5 | 0xC6:
            size, at = _number(data, at, 1 << (tag - 0xC4), (0, 1 << 8, 1 << 16)[tag - 0xC4])
            return _take(data, at, size), at + size
        case 0xCC | 0xCD | 0xCE | 0xCF:
            return _number(data, at, 1 << (tag - 0xCC), (1 << 7, 1 << 8, 1 << 16, 1 << 32)[tag - 0xCC])
        case 0xD9 | 0xDA | 0xDB:
            size, at = _number(data, at, 1 << (tag - 0xD9), (1 << 5, 1 << 8, 1 << 16)[tag - 0xD9])
            return _text(data, at, size)
        case 0xDC | 0xDD:
            size, at = _number(data, at, 2 << (tag - 0xDC), (1 << 4, 1 << 16)[tag - 0xDC])
            return _list(data, at, size, depth)
        case 0xDE | 0xDF:
            size, at = _number(data, at, 2 << (tag - 0xDE), (1 << 4, 1 << 16)[tag - 0xDE])
            return _map(data, at, size, depth)
    raise Malformed(f"byte {at - 1}: 0x{tag:02x} begins no value that Writ writes")


def encode(value: Any) -> bytes:
    """The one way to write `value`; maps in the order they have."""
    out = bytearray()
    _write(out, value)
    return bytes(out)


def _head(out: bytearray, number: int, forms: tuple[tuple[int, int, int], ...]) -> None:
    """Writes a number by the first form it fits: (below, tag, bytes); 0 bytes is a tag that holds the number."""
    for below, tag, size in forms:
        if number < below:
            out.append(tag | number if size == 0 else tag)
            out += number.to_bytes(size, "big") if size else b""
            return
    raise Malformed(f"{number} is too large")


def _write(out: bytearray, value: Any) -> None:
    b8, b16, b32, b64 = 1 << 8, 1 << 16, 1 << 32, 1 << 64
    match value:
        case None:
            out.append(0xC0)
        case bool():
            out.append(0xC3 if value else 0xC2)
        case int() if value >= 0:
            _head(out, value, ((1 << 7, 0, 0), (b8, 0xCC, 1), (b16, 0xCD, 2), (b32, 0xCE, 4), (b64, 0xCF, 8)))
        case str():
            data = value.encode()
            _head(out, len(data), ((1 << 5, 0xA0, 0), (b8, 0xD9, 1), (b16, 0xDA, 2), (b32, 0xDB, 4)))
            out += data
        case bytes():
            _head(out, len(value), ((b8, 0xC4, 1), (b16, 0xC5, 2), (b32, 0xC6, 4)))
            out += value
        case list():
            _head(out, len(value), ((1 << 4, 0x90, 0), (b16, 0xDC, 2), (b32, 0xDD, 4)))
            for item in value:
                _write(out, item)
        case dict():
            _head(out, len(value), ((1 << 4, 0x80, 0), (b16, 0xDE, 2), (b32, 0xDF, 4)))
            for key, item in value.items():
                _write(out, key)
                _write(out, item)
        case _:
            raise Malformed(f"{value!r} has no form")

"""Merkle trees as RFC 6962 has them, and the tiles their hashes are stored in (C2SP tlog-tiles)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgpack import Malformed
from signed import sha256

TILE_WIDTH = 256
HASH_BYTES = 32


def leaf_hash(envelope: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\0", envelope)


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\1", left, right)


class Tree:
    """All perfect subtrees over some leaves, by their height."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self.levels: list[list[bytes]] = [list(leaves)]
        while len(below := self.levels[-1]) > 1:
            self.levels.append([node_hash(*pair) for pair in zip(below[::2], below[1::2])])

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self.levels[0])

    @property
    def leaves(self) -> list[bytes]:
        """Their hashes."""
        return self.levels[0]

    def root(self, size: int) -> bytes:
        """The root when there were `size` leaves, which there must have been."""
        if size == 0:
            return sha256()
        # The perfect subtrees that make up the tree, from the smallest on the right.
        root, end = b"", size
        for height in range(size.bit_length()):
            if size >> height & 1:
                subtree = self.levels[height][(end >> height) - 1]
                root = node_hash(subtree, root) if root else subtree
                end -= 1 << height
        return root

    def path(self, position: int, size: int) -> list[bytes]:
        """What leads from the leaf at `position` to the root of the first `size` leaves, from below."""
        return self._path(position, 0, size)

    def _path(self, position: int, begin: int, end: int) -> list[bytes]:
        if end - begin == 1:
            return []
        middle = begin + (1 << (end - begin - 1).bit_length() - 1)
        if position < middle:
            return [*self._path(position, begin, middle), self._range(middle, end)]
        return [*self._path(position, middle, end), self._range(begin, middle)]

    def _range(self, begin: int, end: int) -> bytes:
        return Tree(self.leaves[begin:end]).root(end - begin)


def root_by_path(leaf: bytes, position: int, size: int, path: list[bytes]) -> bytes:
    """The root a path leads to (RFC 9162, section 2.1.3.2)."""
    if position >= size:
        raise Malformed(f"position {position} is not in a tree of {size}")
    index, last, root = position, size - 1, leaf
    for step in path:
        if last == 0:
            raise Malformed("the path is longer than the tree is high")
        if index & 1 or index == last:
            root = node_hash(step, root)
            while index & 1 == 0 and index != 0:
                index, last = index >> 1, last >> 1
        else:
            root = node_hash(root, step)
        index, last = index >> 1, last >> 1
    if last != 0:
        raise Malformed("the path ends below the root")
    return root


def tile_path(level: int, number: int, width: int) -> str:
    """Where a tile stands: digits of its number in threes, all but the last after an `x`."""
    groups, rest = f"{number % 1000:03}", number // 1000
    while rest:
        groups, rest = f"x{rest % 1000:03}/{groups}", rest // 1000
    return f"tile/{level}/{groups}" + ("" if width == TILE_WIDTH else f".p/{width}")


def tiles_of(size: int) -> Iterable[tuple[int, int, int]]:
    """The tiles of a tree, as (level, number, width)."""
    level = 0
    while (hashes := size >> 8 * level) > 0:
        full, rest = divmod(hashes, TILE_WIDTH)
        yield from ((level, number, TILE_WIDTH) for number in range(full))
        if rest:
            yield level, full, rest
        level += 1


def tile(tree: Tree, level: int, number: int, width: int) -> bytes:
    """What a tile holds."""
    begin = number * TILE_WIDTH
    return b"".join(tree.levels[8 * level][begin : begin + width])


def read_tiles(folder: Path, size: int) -> Tree:
    """The tree that a folder's tiles store, if they are all there and fit each other."""
    # No file can hold more hashes than it has bytes, so a size nobody has tiles for costs nothing.
    leaves: list[bytes] = []
    for level, number, width in tiles_of(size):
        if level > 0:
            break
        found = _read(folder / tile_path(level, number, width), width)
        leaves += [found[at : at + HASH_BYTES] for at in range(0, len(found), HASH_BYTES)]
    tree = Tree(leaves)
    for level, number, width in tiles_of(size):
        path = tile_path(level, number, width)
        if level > 0 and _read(folder / path, width) != tile(tree, level, number, width):
            raise Malformed(f"{path} does not fit the tiles below it")
    return tree


def _read(path: Path, width: int) -> bytes:
    try:
        found = path.read_bytes()
    except OSError as error:
        raise Malformed(f"{path.name}: {error.strerror}") from error
    if len(found) != width * HASH_BYTES:
        raise Malformed(f"{path.name} has {len(found)} bytes instead of {width * HASH_BYTES}")
    return found

"""Checks the layout of a FAISS file before FAISS opens it: kinds, lengths and the file's end.

FAISS trusts a file while it reads. Its mapped reader rounds a short last item up and reads beyond
the mapping; a length can claim a terabyte; some types of lists name another file to open. The walk
below knows exactly the parts of our kinds. A file with any other part, or with a byte too few or
too many, never reaches FAISS. The walk reads lengths and skips the vectors.

Terms are those of FAISS' writer: a vector is a count (uint64) and its items.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from service.bundle.plain_files import open_plain
from service.errors import BundleMismatch, FileCorrupt, FileMissing

_INT, _SIZE, _FLOAT, _BYTE = "<i", "<Q", "<f", "<B"
_INNER_PRODUCT: Final = 0
_MOST_PARTS: Final = 4
"""Most indexes nested in one another: refined, its lists, their refined centres, their codes."""
_MOST_LISTS: Final = 1 << 24
"""A choice, far above any real index: 16 million lists."""
_MOST_COPIES: Final = 2
"""Most lists of codes that hold one row."""
_NO_DIRECT_MAP: Final = 0


class LayoutBroken(ValueError):
    """The file does not have the layout of one of our kinds."""


def check_layout(path: Path, dim: int, n_rows: int) -> None:
    """Raises BundleMismatch unless every byte belongs to an index of `n_rows` vectors of `dim`."""
    try:
        with (
            open_plain(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            walk = _Walk(data)
            shape = walk.index()
            if walk.place != len(data):
                raise LayoutBroken(f"{len(data) - walk.place} bytes follow its end")
    except (ValueError, FileCorrupt, FileMissing) as exc:  # an empty file cannot be mapped
        raise BundleMismatch(f"{path} is not an index that FAISS can read safely: {exc}") from exc
    if shape != (dim, n_rows):
        raise BundleMismatch(
            f"{path} holds {shape[1]} vectors of {shape[0]}, the manifest says {n_rows} of {dim}"
        )


class _Walk:
    """A position in the file; every method reads one part and moves past it.

    All methods raise LayoutBroken.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.place = 0
        self._depth = 0

    def index(self, *kinds: str) -> tuple[int, int]:
        """One index, of one of the FAISS types `kinds` if any are named; returns (dim, n_rows)."""
        name = self._name()
        if name not in _PARTS or (kinds and name not in kinds):
            raise LayoutBroken(f"{name!r} at byte {self.place - 4} is not a type for label indexes")
        self._depth += 1
        if self._depth > _MOST_PARTS:
            raise LayoutBroken("too many indexes in one another")
        dim, n_rows, _, _, trained, metric = self._take("<iqqqBi")
        if dim < 1 or n_rows < 0 or trained != 1 or metric != _INNER_PRODUCT:
            raise LayoutBroken(
                f"{name}: dimension {dim}, rows {n_rows}, trained {trained}, metric {metric}"
            )
        _PARTS[name](self, dim, n_rows)
        self._depth -= 1
        return dim, n_rows

    def flat(self, dim: int, n_rows: int) -> None:
        """Vectors in fp32, counted in words."""
        self._vector(4, n_rows * dim)

    def scalar(self, dim: int, n_rows: int) -> None:
        """A scalar quantiser, then its codes."""
        self._vector(1, n_rows * self._scalar_quantiser(dim))

    def graph(self, dim: int, n_rows: int) -> None:
        """Level probabilities, neighbours by level, levels, offsets, links; then the vectors."""
        self._vector(8)
        self._vector(4)
        self._vector(4, n_rows)
        self._vector(8, n_rows + 1)
        self._vector(4)
        self._take("<iiiii")  # entry point, top level, two efforts, a dummy
        if self.index("IxFI", "IxSQ") != (dim, n_rows):
            raise LayoutBroken("the graph's vectors are of another shape")

    def refined(self, dim: int, n_rows: int) -> None:
        """A coarse index, the vectors that score its candidates again, and a factor."""
        shapes = self.index("IxSQ", "IPfs", "IwPf"), self.index("IxSQ")
        self._take(_FLOAT)
        if shapes != ((dim, n_rows), (dim, n_rows)):
            raise LayoutBroken("the coarse index and its vectors are of other shapes")

    def fast_scan(self, dim: int, n_rows: int) -> None:
        """Four-bit codes in blocks of `block` rows."""
        self._product_quantiser(dim)
        _, block, _, rounded, subs = self._take("<iiiQQ")
        if not 0 < block <= 1 << 16 or rounded != -(-n_rows // block) * block:
            raise LayoutBroken(f"{n_rows} rows in blocks of {block} make {rounded}")
        self._vector(1, rounded * subs // 2)

    def lists(self, dim: int, n_rows: int) -> None:
        """Scalar codes in lists."""
        n_lists = self._lists_header(dim, "IxFI", "IxSQ")
        code_bytes = self._scalar_quantiser(dim)
        self._take("<QB")
        self._expect("ilar")
        if self._take("<QQ") != (n_lists, code_bytes):
            raise LayoutBroken("the lists are not the header's")
        sizes = self._sizes(n_lists)
        if sum(sizes) != n_rows:
            raise LayoutBroken(f"the lists hold {sum(sizes)} rows of {n_rows}")
        for size in sizes:
            self._skip(size, code_bytes + 8)

    def block_lists(self, dim: int, n_rows: int) -> None:
        """Four-bit codes in lists of blocks."""
        n_lists = self._lists_header(dim, "IxFI", "IxSQ", "IxRF")
        self._take("<BQiQiQ")  # residual, code size, block, subs, two ways of computing
        self._product_quantiser(dim)
        self._expect("ilbl")
        again, _, block, block_bytes = self._take("<QQQQ")
        if again != n_lists or not 0 < block <= 1 << 16 or block_bytes > 1 << 24:
            raise LayoutBroken("the lists are not the header's")
        n_entries = 0
        for _ in range(n_lists):
            rows = self._count()
            self._skip(rows, 8)
            self._vector(1, -(-rows // block) * block_bytes)
            n_entries += rows
        if n_entries not in (n_rows, _MOST_COPIES * n_rows):
            raise LayoutBroken(f"the lists hold {n_entries} rows of {n_rows}")

    def _sizes(self, n_lists: int) -> tuple[int, ...]:
        """The sizes of the lists, from one count for each list or from (list, count) pairs."""
        form, count = self._name(), self._count()
        numbers = struct.unpack_from(f"<{count}Q", self._data, self._skip(count, 8))
        if form == "full" and count == n_lists:
            return numbers
        if form == "sprs" and count % 2 == 0 and all(n < n_lists for n in numbers[::2]):
            return numbers[1::2]
        raise LayoutBroken(f"sizes of the form {form!r}, {count} of them for {n_lists} lists")

    def _lists_header(self, dim: int, *centres: str) -> int:
        n_lists, _ = self._take("<QQ")
        if not 0 < n_lists <= _MOST_LISTS or self.index(*centres) != (dim, n_lists):
            raise LayoutBroken(f"{n_lists} lists, and not as many centres of {dim}")
        if self._take(_BYTE)[0] != _NO_DIRECT_MAP:
            raise LayoutBroken("the lists have a direct map")
        self._vector(8, 0)
        return int(n_lists)

    def _scalar_quantiser(self, dim: int) -> int:
        _, _, _, d, code_bytes = self._take("<iifQQ")
        if d != dim or not dim // 2 <= code_bytes <= 4 * dim:
            raise LayoutBroken(f"codes of {code_bytes} bytes for {d} dimensions, expected {dim}")
        self._vector(4)
        return int(code_bytes)

    def _product_quantiser(self, dim: int) -> None:
        d, subs, bits = self._take("<QQQ")
        if d != dim or not 0 < subs <= dim or bits != 4:
            raise LayoutBroken(f"{subs} codes of {bits} bits for {d} dimensions, expected {dim}")
        self._vector(4, dim << bits)

    def _name(self) -> str:
        start = self._skip(1, 4)
        return self._data[start : start + 4].decode("latin-1")

    def _expect(self, name: str) -> None:
        if (actual := self._name()) != name:
            raise LayoutBroken(f"{actual!r} at byte {self.place - 4}, expected {name!r}")

    def _count(self) -> int:
        return int(self._take(_SIZE)[0])

    def _vector(self, item_bytes: int, expected: int | None = None) -> int:
        """Skip a vector; returns the byte at which its items start."""
        count = self._count()
        if expected is not None and count != expected:
            raise LayoutBroken(f"{count} items at byte {self.place}, expected {expected}")
        return self._skip(count, item_bytes)

    def _skip(self, count: int, item_bytes: int) -> int:
        start = self.place
        if count * item_bytes > len(self._data) - start:
            raise LayoutBroken(f"{count * item_bytes} bytes from byte {start} are over its end")
        self.place += count * item_bytes
        return start

    def _take(self, form: str) -> tuple[int, ...]:
        start = self._skip(1, struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)


_PARTS: Final[Mapping[str, Callable[[_Walk, int, int], None]]] = {
    "IxFI": _Walk.flat,
    "IxSQ": _Walk.scalar,
    "IHNf": _Walk.graph,
    "IHNs": _Walk.graph,
    "IxRF": _Walk.refined,
    "IPfs": _Walk.fast_scan,
    "IwSq": _Walk.lists,
    "IwPf": _Walk.block_lists,
}

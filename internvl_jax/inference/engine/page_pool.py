"""Who has which page of a device: pure host code.

Rows that begin alike share the pages of their common beginning. A full page has a name, made of what it holds and of
the name of the page before it, by which later rows find it. It stays when nobody has it any more, until its memory is
needed: then those go first that were left first, and of a row the last before the earlier ones, which others may begin
with.
"""

import collections
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def page_names(keys_T: np.ndarray, size: int) -> list[bytes]:
    """The names of the full pages of a row that holds these keys (see `Seen`), in their order."""
    names, name = [], b""
    for end in range(size, len(keys_T) + 1, size):
        name = hashlib.blake2b(name + keys_T[end - size : end].tobytes(), digest_size=16).digest()
        names.append(name)
    return names


class PagePool:
    """The pages of one device, numbered from 0.

    Args:
      number: how many there are.
    """

    def __init__(self, number: int):
        self.number = number
        self._users = [0] * number
        self._free = list(range(number))[::-1]
        self._pages: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._left: collections.OrderedDict[int, None] = collections.OrderedDict()  # named ones that nobody has

    @property
    def available(self) -> int:
        """How many pages nobody has."""
        return len(self._free) + len(self._left)

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The pages of a beginning of a row: those of the first names, up to one that no page has."""
        found: list[int] = []
        for name in names:
            if name not in self._pages:
                break
            found.append(self._pages[name])
        return found

    def room(self, shared: Sequence[int]) -> int:
        """How many other pages somebody may take who shares these."""
        return self.available - sum(page in self._left for page in shared)

    def share(self, pages: Sequence[int]) -> None:
        """One more has these pages."""
        for page in pages:
            self._users[page] += 1
            self._left.pop(page, None)

    def take(self, count: int) -> list[int]:
        """Pages for somebody alone, of those that nobody has; `available` says how many there are."""
        taken = []
        for _ in range(count):
            if not self._free:
                page, _ = self._left.popitem(last=False)
                del self._pages[self._names.pop(page)]
                self._free.append(page)
            taken.append(self._free.pop())
        self.share(taken)
        return taken

    def name(self, page: int, name: bytes) -> None:
        """What a page holds from now on; the first page of a name is the one that is found."""
        if name not in self._pages and page not in self._names:
            self._pages[name], self._names[page] = page, name

    def give_back(self, pages: Sequence[int]) -> None:
        """One fewer has these pages, which are in the order of a row."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._names:
                    self._left[page] = None
                else:
                    self._free.append(page)

    def forget(self) -> None:
        """No page is found any more."""
        self._free += self._left
        self._pages.clear()
        self._names.clear()
        self._left.clear()

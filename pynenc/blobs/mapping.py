"""Mapping files by the system calls themselves, and huge pages for segments that are used again and again.

Python's `mmap` keeps a descriptor open for each mapping, so a list of a thousand arrays would use them up.

A page is 4 KiB unless somebody says otherwise, and most of what it costs to write 100 MB into shared memory and to map them is the
25,000 pages. In huge pages, of 2 MiB, writing takes three quarters and mapping a quarter of the time. To have a segment moved
into such pages costs about as much as writing it once, so that is worth it for those that come back.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable
from typing import Any

from pynenc.blobs.directory import HUGE_BYTES, MIN_HUGE_BYTES

_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value
_libc: Any = None


def _system() -> Any:
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        _libc.mmap.restype = pointer
        _libc.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_long]
        _libc.munmap.argtypes = [pointer, size]
        _libc.madvise.argtypes = [pointer, size, number]
    return _libc


def map_file(fd: int, size: int, protection: int = mmap.PROT_READ) -> int:
    """Map the first bytes of an open file; the address.

    Raises:
        OSError: The system does not take one more mapping.
    """
    reserved = _reserve(size) if size >= MIN_HUGE_BYTES else None
    where = mmap.MAP_SHARED if reserved is None else mmap.MAP_SHARED | _MAP_FIXED
    address: int = _system().mmap(reserved, size, protection, where, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        if reserved is not None:
            unmap(reserved, size)
        hint = "; too many large values are held at once (vm.max_map_count)" if number == errno.ENOMEM else ""
        raise OSError(number, f"{os.strerror(number)}: a large value of {size:,} bytes cannot be mapped{hint}")
    return address


def unmap(address: int, size: int) -> None:
    """Undo `map_file`."""
    _system().munmap(address, size)


def make_huge(fd: int) -> bool:
    """Move a file in shared memory into huge pages, as far as it fills them; False when this system does not do that.

    Others may read and write it meanwhile.

    Raises:
        OSError: It cannot be mapped.
    """
    size = os.fstat(fd).st_size // HUGE_BYTES * HUGE_BYTES
    address = map_file(fd, size, mmap.PROT_READ | mmap.PROT_WRITE)
    try:
        pieces: Iterable[int] = range(address, address + size, HUGE_BYTES)
        for _ in range(2):  # A page that somebody just touches cannot be moved.
            failures = {one: why for one in pieces if (why := _collapse(one))}
            if errno.EINVAL in failures.values() or errno.ENOSYS in failures.values():
                return False
            pieces = failures
        return True
    finally:
        unmap(address, size)


def _collapse(address: int) -> int:
    failed = _system().madvise(address, HUGE_BYTES, _MADV_COLLAPSE)
    return ctypes.get_errno() if failed else 0


def _reserve(size: int) -> int | None:
    """Room in the address space that begins where a huge page can; None when there is none."""
    system, whole = _system(), -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    found: int = system.mmap(None, whole + HUGE_BYTES, _PROT_NONE, private, -1, 0)
    if found == _FAILED:
        return None
    begin = -(-found // HUGE_BYTES) * HUGE_BYTES
    if begin > found:
        system.munmap(found, begin - found)
    system.munmap(begin + whole, found + HUGE_BYTES - begin)
    return begin

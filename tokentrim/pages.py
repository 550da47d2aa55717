"""Large memory pages for large caches on a CPU.

Torch takes every large tensor from the system anew, and the system hands it over in pages of 4 KiB, each at the first
touch: for a cache of some hundred megabytes that costs several times what writing it does. Linux can be asked for pages
of 2 MiB. It is advice: a system that does not take it does what it always did.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import lru_cache
from typing import Any

from torch import Tensor

_LEAST_BYTES = 32 * 2**20
"""From here on glibc gives every block a mapping of its own, so that the advice touches nothing else."""
_HUGEPAGE = 14  # MADV_HUGEPAGE of Linux' madvise(2)


def ask_for_large_pages(tensor: Tensor) -> Tensor:
    """Ask for large pages under a tensor that nothing has been written to yet; returns it."""
    size = tensor.nbytes
    advise = _advise() if size >= _LEAST_BYTES and tensor.device.type == "cpu" else None
    if advise is not None:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _HUGEPAGE)
    return tensor


@lru_cache(maxsize=1)
def _advise() -> Any:
    """The C library's ``madvise``, or None where there is none of Linux' kind."""
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None

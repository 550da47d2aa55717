"""Large pages: advice for large CPU tensors, and nothing that a reader of the tensor could see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokentrim import pages
from tokentrim.pages import ask_for_large_pages


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Ranges that advice was given for."""
    found: list[tuple[int, int, int]] = []
    monkeypatch.setattr(pages, "_advise", lambda: lambda at, size, what: found.append((at.value, size.value, what)))
    return found


def test_whole_pages_inside_the_tensor(asked: list[tuple[int, int, int]]) -> None:
    tensor = torch.empty(9 * 2**20)
    assert ask_for_large_pages(tensor) is tensor
    ((begin, size, what),) = asked
    assert begin % pages.mmap.PAGESIZE == size % pages.mmap.PAGESIZE == 0
    assert tensor.data_ptr() <= begin < begin + size <= tensor.data_ptr() + tensor.nbytes
    assert size > tensor.nbytes - 2 * pages.mmap.PAGESIZE
    assert what == 14


@pytest.mark.parametrize("tensor", [torch.empty(2**20), torch.empty(2**30, device="meta")], ids=["small", "elsewhere"])
def test_nothing_is_asked_for_others(tensor: torch.Tensor, asked: list[Any]) -> None:
    assert ask_for_large_pages(tensor) is tensor
    assert not asked


def test_systems_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.sys, "platform", "darwin")
    pages._advise.cache_clear()
    tensor = ask_for_large_pages(torch.zeros(9 * 2**20))
    pages._advise.cache_clear()
    assert not tensor.any()


def test_what_is_written_is_read() -> None:
    tensor = ask_for_large_pages(torch.empty(9 * 2**20))
    tensor.copy_(torch.arange(9 * 2**20))
    assert torch.equal(tensor, torch.arange(9 * 2**20).float())

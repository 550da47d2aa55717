"""Counter-based noise: a pure function of (seed, sample content, token number), on any device.

A generator with hidden state would make a sample's noise depend on its place in the batch and on what ran before;
an integer hash of a key and a counter does not. The mixing step is Thomas Wang's / splitmix-style xor-shift-multiply
on 32-bit words held in int64, so that CPU and GPU agree bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_AT_ONCE = 1 << 18
"""Pixels of an image that are looked at together: their words take several times the memory of the pixels."""


def mix(word: Tensor) -> Tensor:
    """One avalanche round on 32-bit words held in int64."""
    word = word & _MASK
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & _MASK
    word = ((word ^ (word >> 15)) * 0x846CA68B) & _MASK
    return word ^ (word >> 16)


def uniform(keys: Tensor, counters: Tensor, *, seed: int, salt: int = 0) -> Tensor:
    """float32 [B, N] in [0, 1).

    Args:
        keys: int64 [B], one content key per sample.
        counters: int64 [B, N], one counter per number wanted.
        seed: the user's seed.
        salt: separates draws of one seed (a boundary, a step).
    """
    base = mix(keys + mix(torch.full_like(keys, seed + 0x9E3779B9)) + salt * 0x85EBCA6B)
    word = mix(mix(counters + 1) + base.unsqueeze(1))
    return (word >> 8).to(torch.float32) / float(1 << 24)


def content_key(tokens: Tensor) -> Tensor:
    """int64 [rows]: an order-sensitive checksum of integer ``tokens`` [rows, n], exact and batch-independent.

    Left padding must already be masked to zero: zeros in front do not change the key.
    """
    n = tokens.shape[1]
    places = torch.arange(n, 0, -1, device=tokens.device)  # counted from the end, so left padding drops out
    return ((mix(tokens) * mix(places)) & _MASK).masked_fill(tokens == 0, 0).sum(dim=1) & _MASK


def pixel_key(pixels: Tensor) -> Tensor:
    """int64 [images]: checksum of each image's pixel values (their bits, summed with position weights)."""
    flat = pixels.detach().flatten(1)
    key = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.shape[1], _AT_ONCE):
        bits = flat[:, start : start + _AT_ONCE].to(torch.float32).contiguous().view(torch.int32).to(torch.int64)
        places = torch.arange(start + 1, start + 1 + bits.shape[1], device=flat.device)
        key += ((bits & _MASK) * (mix(places) | 1) & _MASK).sum(dim=1)
    return key & _MASK

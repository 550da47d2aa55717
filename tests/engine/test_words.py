"""What tokens say: pieces of a text, also where a character is several tokens, and spaces that a tokenizer drops."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from pydantic import PrivateAttr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.clip import in_folder
from tests.generate.processing import processor_for
from tests.models import IMAGE, PAD, prompt, tiny_llava
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import LayerSite, Need
from tokentrim.contracts.strategy import SpatialSelector
from tokentrim.counting.schedule import Schedule
from tokentrim.engine.seams.words import Words
from tokentrim.session import trim


def _words(decoder: Any, *tokens: str) -> Words:
    made = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoder
    return Words(PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>"))


@pytest.mark.parametrize(
    ("decoder", "tokens"),
    [
        (decoders.Metaspace(), ("</s>", "▁a", "▁shi", "rt", "?")),
        (decoders.ByteLevel(), ("</s>", "a", "Ġshi", "rt", "?", "Ã", "©")),
    ],
)
def test_pieces_add_up_to_the_text(decoder: Any, tokens: tuple[str, ...]) -> None:
    words = _words(decoder, *tokens)
    assert words.pieces([1, 2, 3, 0, 4]) == ("a", " shi", "rt", "", "?")
    assert words.pieces([]) == ()
    if len(tokens) > 5:  # one character of two tokens
        assert words.pieces([3, 5, 6, 4]) == ("rt", "", "é", "?")


class _Reader(SpatialSelector):
    """Notes what the text says, all of it and what stands behind the picture."""

    name: ClassVar[str] = "reader"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEXT, Need.TEXT_IDS})
    _told: dict[str, list[list[str]]] = PrivateAttr(default_factory=dict)

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({0: 0})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        _, real, behind = site.text_ids
        for name, chosen in (("all", real), ("behind", behind)):
            self._told[name] = ["".join(row).split() for row in site.text(chosen)]
        return Selection.from_mask(torch.zeros_like(site.valid), tuple(count.tolist()))


def test_a_site_says_what_its_text_says(tmp_path: Any) -> None:
    model = tiny_llava(side=4)
    model = in_folder(model, processor_for(model), tmp_path)
    inputs = prompt(model, [3, 8, "image", 5, 7], [9], ["image", 6])
    reader = _Reader()
    with trim(model, reader), torch.no_grad():
        model(**inputs)
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        real = ids[ids.count(PAD) :] if PAD in ids else ids
        last = max((at for at, token in enumerate(real) if token == IMAGE), default=-1)
        for name, tokens in (("all", real), ("behind", real[last + 1 :])):
            assert reader._told[name][row] == [f"w{token}" for token in tokens if token != IMAGE]

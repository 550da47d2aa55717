"""What a strategy is shown is what is there: every need against the untouched eager model's own maps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.probes import Probe, StepProbe
from tests.engine.reference import embeddings
from tests.models import IMAGE, alone, prompt, tiny_llava
from tokentrim.contracts.compose import compose
from tokentrim.errors import StrategyError
from tokentrim.session import trim
from tokentrim_strategies.fastv import FastV

_model = lru_cache(maxsize=8)(tiny_llava)
SIDE, N = 4, 16
LAYOUTS: tuple[list[int | str], ...] = ([3, "image", 5], [9], [2, "image", 4, "image", 7], ["image", 2])


class Maps:
    """Attention maps, keys, values and hidden states of one unpadded row in the untouched eager model."""

    def __init__(self, inputs: dict[str, Tensor], **options: Any) -> None:
        model = _model(side=SIDE, attention="eager", **options)
        with torch.no_grad():
            out = model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=True)
            tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True)
            # [images, tokens, D] of each block: queries and keys, all heads one after another
            self.queries, self.vision_keys = (_outputs_of(model, inputs, f"self_attn.{name}_proj") for name in "qk")
        self.rows = [layer[0] for layer in out.attentions]  # [H, T, T]
        self.hidden = [states[0] for states in out.hidden_states]
        self.plain = [
            _plain_row(layer, states)
            for layer, states in zip(model.model.language_model.layers, self.hidden, strict=False)
        ]
        self.keys = [layer.keys[0] for layer in out.past_key_values.layers]
        self.values = [layer.values[0] for layer in out.past_key_values.layers]
        self.vision = tower.attentions  # per block [images, H, tokens, tokens]
        self.embeds = embeddings(model, inputs)
        self.norm = model.model.language_model.norm
        self.ids = inputs["input_ids"][0]
        self.places = torch.nonzero(inputs["input_ids"][0] == IMAGE)[:, 0]
        self.text = torch.nonzero(inputs["input_ids"][0] != IMAGE)[:, 0]


def _plain_row(layer: Any, states: Tensor) -> Tensor:
    """[H, T]: the last token's attention in a decoder layer, nothing turned by RoPE."""
    attention = layer.self_attn
    with torch.no_grad():
        normed = layer.input_layernorm(states)
        query, key = (
            projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj)
        )
        products = query[:, -1:] @ key.repeat_interleave(len(query) // len(key), dim=0).transpose(1, 2)
    return (products[:, 0] * attention.head_dim**-0.5).softmax(dim=-1)


def _outputs_of(model: Any, inputs: dict[str, Tensor], name: str) -> list[Tensor]:
    """What the vision tower's modules of that name return, block after block."""
    found: list[Tensor] = []
    modules = [module for path, module in model.model.vision_tower.named_modules() if path.endswith(name)]
    handles = [module.register_forward_hook(lambda _m, _a, output: found.append(output)) for module in modules]
    model.model.vision_tower(inputs["pixel_values"])
    for handle in handles:
        handle.remove()
    return found


def _places(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the position ids that generate would pass, which do not count padding."""
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def _near(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=1e-5)


def _check_row(seen: dict[str, Any], row: int, maps: Maps, boundary: int, window: int = 3) -> None:
    """Everything that a probe saw at ``boundary`` (its first) in ``row``, against the maps of layer boundary - 1."""
    n, places, text = len(maps.places), maps.places, maps.text
    _near(seen["hidden"][row, :n], maps.hidden[boundary][places])
    _near(seen["features"][row, :n], maps.embeds[places])
    _near(seen["normed"][row, :n], maps.norm(maps.hidden[boundary][places]))
    embeds, real = seen["text_embeds"]
    assert real[row].sum() == len(text)
    _near(embeds[row][real[row]], maps.embeds[text])
    ids, real, behind = seen["text_ids"]
    assert torch.equal(ids[row][real[row]], maps.ids[text])
    assert torch.equal(behind[row][real[row]], text > int(places[-1]))
    states, real, behind = seen["text_hidden"]
    _near(states[row][real[row]], maps.hidden[boundary][text])
    assert torch.equal(behind[row][real[row]], text > int(places[-1]))
    assert not bool((behind[row] & ~real[row]).any())
    if boundary == 0:
        return
    rows = maps.rows[boundary - 1]
    _near(seen["next_row"][row, :, :n], maps.rows[boundary][:, -1, places])
    _near(seen["next_row_plain"][row, :, :n], maps.plain[boundary][:, places])
    peaks = rows.amax(dim=0)[:, places]
    _near(seen["head_peaks"][row, 0, :n], peaks[places].sum(dim=0))
    _near(seen["head_peaks"][row, 1, :n], peaks[text[text > places[-1]]].sum(dim=0))
    _near(seen["hidden_before"][row, :n], maps.hidden[boundary - 1][places])
    keys, real, behind = seen["text_keys"]
    _near(keys[row][:, real[row]], maps.keys[boundary - 1][:, text])
    assert torch.equal(behind[row][real[row]], text > int(places[-1]))
    _near(seen["last_row"][row, :, :n], rows[:, -1, places])
    attention, real = seen["text_rows"]
    assert real[row].sum() == len(text)
    _near(attention[row][:, real[row], :n], rows[:, text][:, :, places])
    attention, real = seen["window_rows"]
    shown = min(window, rows.shape[1])
    assert attention.shape[2] == window
    assert real[row].sum() == shown
    _near(attention[row][:, real[row], :n], rows[:, -shown:, places])
    _near(seen["column_mean"][row, :, :n], rows[:, :, places].mean(dim=1))
    _near(seen["keys"][row, :, :n], maps.keys[boundary - 1][:, places])
    _near(seen["values"][row, :, :n], maps.values[boundary - 1][:, places])


def _vision_rows(maps: Maps, block: int, has_cls: bool) -> Tensor:
    """[H, N]: the [CLS] row of a block, or what each patch receives on average; image after image."""
    attention = maps.vision[block]
    per_image = attention[:, :, 0, 1:] if has_cls else attention.mean(dim=2)
    return per_image.permute(1, 0, 2).flatten(1)


def _check_tower(seen: dict[str, Any], row: int, index: int, maps: Maps, block: int, has_cls: bool) -> None:
    """What was read in one vision block, the ``index``-th that the probe wanted."""
    n, first = len(maps.places), int(has_cls)
    _near(seen["vision_rows"][row, index, :, :n], _vision_rows(maps, block, has_cls))
    received = maps.vision[block].mean(dim=2)[..., first:].permute(1, 0, 2).flatten(1)
    _near(seen["vision_columns"][row, index, :, :n], received)
    keys = maps.vision_keys[block]
    _near(seen["vision_keys"][row, index, :n], keys[:, first:].flatten(0, 1))
    heads = len(received)
    asking = maps.queries[block][:, :1] if has_cls else maps.queries[block].mean(dim=1, keepdim=True)
    products = (asking * keys[:, first:]).unflatten(-1, (heads, -1)).sum(-1) / (keys.shape[-1] // heads) ** 0.5
    _near(seen["vision_logits"][row, index, :, :n], products.flatten(0, 1).T)
    wide = torch.softmax(maps.queries[block] @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5, dim=-1)
    wide = wide[:, 0, first:] if has_cls else wide.mean(dim=1)
    _near(seen["vision_wide"][row, index, 0, :n], wide.flatten())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("boundary", [0, 1, 2, 5])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_site_shows_what_the_untouched_model_computes(tower: Any, boundary: int, attention: str) -> None:
    model = _model(tower=tower, side=SIDE, attention=attention)
    batch = prompt(model, *LAYOUTS)
    probe = Probe(at=(boundary,), blocks=(-2, 0))
    with trim(model, probe), torch.no_grad():
        model(**_places(batch))
    seen = probe._seen[boundary]
    for row in (0, 2, 3):
        maps = Maps(alone(batch, row, N), tower=tower)
        n = len(maps.places)
        _check_row(seen, row, maps, boundary)
        for index, block in enumerate((1, 0)):
            _check_tower(seen, row, index, maps, block, tower == "clip")
        _near(seen["projected"][row, :n], maps.embeds[maps.places])
        assert seen["vision_hidden"].shape[-1] == model.config.vision_config.hidden_size
        grid = seen["grid"]
        order = torch.arange(n)
        assert torch.equal(grid.image[row, :n], order // N)
        assert torch.equal(grid.row[row, :n], order % N // SIDE)
        assert torch.equal(grid.col[row, :n], order % SIDE)
        assert torch.equal(grid.frame[row, :n], torch.zeros(n, dtype=torch.long))
        assert bool((grid.image[row, n:] == -1).all())
        assert grid.rows[row, :n].tolist() == grid.cols[row, :n].tolist() == [SIDE] * n
        assert seen["ids"][row].tolist() == [*range(n), *[-1] * (2 * N - n)]


@pytest.mark.parametrize("backbone", ["mistral", "qwen2"])
def test_grouped_heads_and_biases_are_read_right(backbone: Any) -> None:
    model = _model(backbone, side=SIDE, kv_heads=1)
    batch = prompt(model, *LAYOUTS)
    probe = Probe(at=(3,), window=30)
    with trim(model, probe), torch.no_grad():
        model(**_places(batch))
    for row in (0, 2):
        maps = Maps(alone(batch, row, N), backbone=backbone, kv_heads=1)
        _check_row(probe._seen[3], row, maps, 3, window=30)


def test_a_part_may_read_other_things_at_each_of_its_boundaries() -> None:
    """What does not exist at the input is asked for behind it alone."""
    model = _model(side=SIDE)
    batch = prompt(model, *LAYOUTS)
    probe, whole = Probe(at=(0, 2)), Probe(at=(0, 2), halvings=0)
    for one in (probe, whole):
        with trim(model, one), torch.no_grad():
            model(**_places(batch))
    assert {"last_row", "keys"} <= probe._seen[2].keys() - probe._seen[0].keys()
    for row in (0, 2):
        _check_row(whole._seen[2], row, Maps(alone(batch, row, N)), 2)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_later_boundaries_show_what_is_left_in_any_batch(padding: Any) -> None:
    """The second site of a pruned run has no untouched twin: it must at least be the row's own, alone."""
    model = _model(side=SIDE)
    batch = prompt(model, *LAYOUTS, padding=padding)
    probe = Probe(at=(1, 3))
    with trim(model, probe), torch.no_grad():
        model(**_places(batch))
    for row in (0, 2, 3):
        own = Probe(at=(1, 3))
        with trim(model, own), torch.no_grad():
            model(**alone(batch, row, N))
        for boundary in (1, 3):
            _same_row(probe._seen[boundary], own._seen[boundary], row)


def _same_row(batch: dict[str, Any], own: dict[str, Any], row: int) -> None:
    n = own["n_visual"][0]
    assert batch["n_visual"][row] == n
    assert torch.equal(batch["ids"][row, :n], own["ids"][0])
    assert torch.equal(batch["noise"][row, :n], own["noise"][0])
    for name in ("hidden", "hidden_before", "features", "vision_hidden", "projected"):
        _near(batch[name][row, :n], own[name][0])
    for name in ("last_row", "next_row", "next_row_plain", "head_peaks", "column_mean"):
        _near(batch[name][row, ..., :n], own[name][0])
    for name in ("keys", "values"):
        _near(batch[name][row, :, :n], own[name][0])
    for name in ("vision_rows", "vision_columns", "vision_logits", "vision_wide"):
        _near(batch[name][row, ..., :n], own[name][0])
    _near(batch["vision_keys"][row, :, :n], own["vision_keys"][0])
    for name in ("text_rows", "window_rows"):
        (rows, real), (expected, own_real) = batch[name], own[name]
        _near(rows[row][:, real[row], :n], expected[0][:, own_real[0]])
    _near(batch["text_embeds"][0][row][batch["text_embeds"][1][row]], own["text_embeds"][0][0])
    for name in ("image", "row", "col"):
        assert torch.equal(getattr(batch["grid"], name)[row, :n], getattr(own["grid"], name)[0])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_every_beam_is_shown_its_own_sample(options: dict[str, Any]) -> None:
    model = _model(side=SIDE)
    # One image in each row: transformers 5.18 expands two images of one row in the wrong order, pruned or not.
    batch = prompt(model, LAYOUTS[0], LAYOUTS[3])
    copies = next(iter(options.values()))
    probe = Probe(at=(2,))
    with trim(model, probe):
        model.generate(**batch, max_new_tokens=2, **options)
    for row in (0, 1):
        maps = Maps(alone(batch, row, N))
        for copy in range(copies):
            beam = row * copies + copy
            n = len(maps.places)
            _near(probe._seen[2]["hidden"][beam, :n], maps.hidden[2][maps.places])
            _near(probe._seen[2]["last_row"][beam, :, :n], maps.rows[1][:, -1, maps.places])
            _near(probe._seen[2]["vision_rows"][beam, 0, :, :n], _vision_rows(maps, 1, True))
            assert torch.equal(probe._seen[2]["noise"][beam], probe._seen[2]["noise"][row * copies])


def test_two_parts_at_one_boundary_see_the_tokens_that_are_left() -> None:
    model = _model(side=SIDE)
    batch = prompt(model, *LAYOUTS)
    first, second = Probe(at=(2,), window=5), Probe(at=(2,), window=2, halvings=2)
    with trim(model, compose((first, second))), torch.no_grad():
        model(**batch)
    before, after = first._seen[2], second._seen[2]
    for row in (0, 2):
        n = after["n_visual"][row]
        assert after["ids"][row, :n].tolist() == before["ids"][row, : 2 * n : 2].tolist()
        last = dict.fromkeys(("last_row", "next_row", "next_row_plain", "head_peaks", "column_mean"), -1)
        for name, axis in {**last, "keys": 1, "values": 1, "hidden": 0, "hidden_before": 0}.items():
            full = before[name][row].movedim(axis, 0)[: 2 * n : 2]
            assert torch.equal(after[name][row].movedim(axis, 0)[:n], full)
        assert torch.equal(after["text_rows"][0][row][..., :n], before["text_rows"][0][row][..., : 2 * n : 2])
        assert after["window_rows"][0].shape[2] == 2
        assert torch.equal(after["window_rows"][0][row][..., :n], before["window_rows"][0][row][:, -2:, : 2 * n : 2])


def test_a_step_site_shows_what_the_cache_holds() -> None:
    """A step's rows against the untouched model run on the whole sequence; nothing is evicted before step 1."""
    model = _model(side=SIDE)
    batch = prompt(model, *LAYOUTS)
    probe = StepProbe(window=30)
    with trim(model, probe):
        out = model.generate(**batch, max_new_tokens=4, do_sample=False)
    length = batch["input_ids"].shape[1]
    for row in (0, 2, 3):
        single = alone(batch, row, N)
        start = Maps(single)
        longer = {**single, "input_ids": torch.cat([single["input_ids"], out[row : row + 1, length : length + 1]], 1)}
        first = Maps(longer)
        n, places = len(first.places), first.places
        seen = probe._seen[1, 0]
        _near(seen["last_row"][row, :, :n], first.rows[0][:, -1, places])
        _near(seen["prompt_row"][row, :, :n], start.rows[0][:, -1, places])
        _near(seen["values"][row, :, :n], first.values[0][:, places])
        _near(seen["keys"][row, :, :n], first.keys[0][:, places])
        for layer in range(6):
            _near(probe._seen[1, layer]["prompt_row"][row, :, :n], start.rows[layer][:, -1, places])
            mean = start.rows[layer][:, :, places].mean(dim=1)
            _near(probe._seen[1, layer]["prompt_columns"][row, :, :n], mean)
            window = start.rows[layer][:, -30:, places].mean(dim=1)  # longer than the shortest row
            _near(probe._seen[1, layer]["prompt_window"][row, :, :n], window)
            later = probe._seen[3, layer]
            assert later["ids"][row, : n - 2].tolist() == list(range(2, n))
            _near(later["prompt_row"][row, :, : n - 2], start.rows[layer][:, -1, places[2:]])
            assert torch.equal(later["noise"][row, : n - 2], probe._seen[1, layer]["noise"][row, 2:n])


def test_a_step_site_shows_another_layers_row_and_what_was_accumulated() -> None:
    """Where nothing leaves, layer 0 sees all entries at every step, whatever it attends to."""
    model = _model(side=SIDE)
    batch = prompt(model, *LAYOUTS)
    probe = StepProbe(back=1, stays=True)
    with trim(model, probe):
        out = model.generate(**batch, max_new_tokens=4, do_sample=False, suppress_tokens=[IMAGE])
    length = batch["input_ids"].shape[1]
    for row in (0, 2, 3):
        single = alone(batch, row, N)
        start = Maps(single)
        n, places = len(start.places), start.places
        total = start.rows[0][:, -1, places]
        for step in (1, 2, 3):
            answer = out[row : row + 1, length : length + step]
            now = Maps({**single, "input_ids": torch.cat([single["input_ids"], answer], 1)}).rows[0][:, -1, places]
            total = total + now
            seen = probe._seen[step, 1]
            assert seen["ids"][row, :n].tolist() == list(range(n))
            _near(seen["last_row"][row, :, :n], now)
            _near(probe._seen[step, 0]["accumulated"][row, :, :n], total)


def test_reading_what_was_not_declared_is_an_error() -> None:
    class Curious(FastV):
        name = "curious"

        def score(self, site: Any) -> Tensor:
            return site.column_mean.mean(dim=1)

    model = _model(side=SIDE)
    with trim(model, Curious()), pytest.raises(StrategyError, match="be declared before use"):
        model(**prompt(model, [3, "image", 5]))


def test_norm_projector_and_the_next_layer_serve_where_weights_are_offloaded() -> None:
    accelerate = pytest.importorskip("accelerate")
    whole, offloaded = tiny_llava(side=SIDE), tiny_llava(side=SIDE)
    accelerate.cpu_offload(offloaded, execution_device=torch.device("cpu"))
    batch, seen = _places(prompt(whole, *LAYOUTS)), []
    for model in (whole, offloaded):
        probe = Probe(at=(2,))
        with trim(model, probe), torch.no_grad():
            model(**batch)
        seen.append(probe._seen[2])
    for name in ("normed", "projected", "next_row"):
        _near(seen[1][name], seen[0][name])

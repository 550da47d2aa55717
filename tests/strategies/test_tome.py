"""``tome``: its schedule, its choice of one token a group, and the tower that merges against a slow one."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.engine.cases import deviation
from tests.every_family import FAMILIES
from tests.models import prompt, tiny_llava
from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape
from tokentrim import Need, StrategyError, UnsupportedError, plan, trim
from tokentrim.contracts.toolkit.matching import merge_sized, soft_matching
from tokentrim.counting.costs import vision_flops
from tokentrim.counting.published import PRESETS
from tokentrim.engine.report import usages
from tokentrim_strategies.tome import ToMe, pairs_per_block, pairs_to

ROWS = ([3, "image", 5], [2, "image", "image", 4])


def test_schedules_by_hand():
    assert pairs_to(192, 576, 23, "constant") == (17,) * 22 + (10,)
    assert pairs_per_block(4, 5, "decreasing") == (8, 6, 4, 2, 0)
    assert pairs_to(4, 9, 2, "constant") == (3, 2)
    assert pairs_to(1, 9, 2, "constant") == (4, 2)  # no further than by halves: 9, 5, 3
    assert pairs_to(9, 9, 0, "decreasing") == ()


@given(st.integers(0, 200), st.integers(1, 200), st.integers(1, 30), st.sampled_from(["constant", "decreasing"]))
def test_a_schedule_reaches_what_halving_can(left: int, tokens: int, blocks: int, rounds: Any):
    now = reach = tokens
    for pairs in pairs_to(left, tokens, blocks, rounds):
        assert 0 <= pairs <= now // 2
        now -= pairs
    for _ in range(max(1, blocks - (rounds == "decreasing"))):  # the last round merges nothing there
        reach -= reach // 2
    assert now == max(left, reach) if left < tokens else now == tokens


def slow_round(metric: Tensor, vectors: Tensor, sizes: list[float], pairs: int, protected: int):
    """One round on one picture, token by token: vectors, sizes, and where each token went."""
    cosine = torch.nn.functional.cosine_similarity(metric[:, None], metric[None], dim=-1)
    tokens = range(len(metric))
    best = {
        i: max(range(1 + 2 * (protected > 1), len(metric), 2), key=lambda j, i=i: (float(cosine[i, j]), -j))
        for i in tokens[::2]
        if i >= protected
    }
    order = sorted(best, key=lambda i: -float(cosine[i, best[i]]))
    merged, rest = order[:pairs], order[pairs:]
    rest = [*range(0, protected, 2), *(sorted(rest) if protected else rest)]
    new = [*rest, *tokens[1::2]]
    groups = [[i, *(one for one in merged if best[one] == i)] for i in new]
    out = [sum(sizes[i] * vectors[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
    place = {i: number for number, group in enumerate(groups) for i in group}
    return torch.stack(out), [sum(sizes[i] for i in group) for group in groups], [place[i] for i in tokens]


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(0, 6), st.integers(0, 1), st.integers(0, 99))
def test_a_round_is_the_slow_one(tokens: int, pairs: int, protected: int, seed: int):
    noise = torch.Generator().manual_seed(seed)
    metric, vectors = torch.randn(2, tokens, 4, generator=noise), torch.randn(2, tokens, 3, generator=noise)
    sizes = torch.randint(1, 5, (2, tokens), generator=noise).float()
    pairs = min(pairs, (tokens - protected) // 2)
    slots = soft_matching(metric, pairs, protected)
    merged, after = merge_sized(vectors, sizes, slots, tokens - pairs)
    for row in range(2):
        want, want_sizes, want_slots = slow_round(metric[row], vectors[row], sizes[row].tolist(), pairs, protected)
        if pairs:
            assert slots[row].tolist() == want_slots
            torch.testing.assert_close(merged[row], want)
            assert after[row].tolist() == want_sizes


def test_one_token_of_each_group_stays():
    groups = torch.tensor([[0, 0, 2, 3, 2, 0], [0, 1, 0, -1, -1, -1]])
    site = layer_site((6, 3), {Need.TOWER_GROUPS: groups})
    chosen = ToMe().select(site, counts_tensor(3, 2))
    assert chosen.kept.tolist() == [[0, 2, 3], [0, 1, -1]]
    # More groups than may stay: the largest. Fewer: further tokens, the lowest numbers first.
    assert ToMe().select(site, counts_tensor(2, 3)).kept.tolist() == [[0, 2, -1], [0, 1, 2]]
    assert ToMe().select(site, counts_tensor(4, 0)).kept.tolist() == [[0, 1, 2, 3], [-1] * 4]


def slow_tower(model: Any, pixels: Tensor, pairs: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """Projected features of one picture whose tokens merge, and the groups, with attention spelled out."""
    tower, has_cls = model.model.vision_tower, hasattr(model.model.vision_tower.embeddings, "class_embedding")
    hidden = tower.embeddings(pixels[None])
    x = (tower.pre_layrnorm(hidden) if has_cls else hidden)[0]
    sizes, groups = [1.0] * len(x), list(range(len(x)))
    for block, wanted in zip(tower.encoder.layers, pairs, strict=False):
        attention, states = block.self_attn, block.layer_norm1(x)
        q, k, v = (
            getattr(attention, f"{name}_proj")(states).view(len(x), attention.num_heads, -1).transpose(0, 1)
            for name in "qkv"
        )
        logits = q @ k.transpose(1, 2) * attention.head_dim**-0.5 + torch.tensor(sizes).log()
        x = x + attention.out_proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
        x, sizes, places = slow_round(k.mean(0), x, sizes, wanted, int(has_cls))
        groups = [places[place] for place in groups]
        x = x + block.mlp(block.layer_norm2(x))
    return model.model.multi_modal_projector(x[groups][int(has_cls) :]), groups[int(has_cls) :]


@pytest.mark.parametrize(("tower", "attention"), [("clip", "sdpa"), ("clip", "eager"), ("siglip", "sdpa")])
@torch.no_grad()
def test_the_tower_merges_as_a_slow_one(tower: Any, attention: str):
    model = tiny_llava(tower=tower, side=5, attention=attention)
    inputs = prompt(model, *ROWS)
    pixels = inputs["pixel_values"]
    before = model.get_image_features(pixels).pooler_output
    with trim(model, ToMe(keep_ratio=0.32)) as session:
        features = model.get_image_features(pixels).pooler_output
        model(**inputs)
        trace = session.trace
    first = 0
    for row, images in enumerate((1, 2)):
        kept: list[int] = []
        for image in range(first, first + images):
            want, groups = slow_tower(model, pixels[image], pairs_to(8, 25, 2, "constant"))
            torch.testing.assert_close(features[image], want, rtol=1e-4, atol=1e-4)
            kept += [25 * (image - first) + groups.index(group) for group in dict.fromkeys(groups)]
        first += images
        assert len(kept) == 8 * images
        assert trace.kept(0, row).tolist() == sorted(kept)
    after = model.get_image_features(pixels).pooler_output
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype):
    model = tiny_llava(side=4, dtype=dtype)
    inputs = prompt(model, *ROWS)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with trim(model, ToMe()) as session:
        logits = model(**inputs).logits
        assert session.trace.n_visual == (16, 32)
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
@torch.no_grad()
def test_tiles_merge_among_themselves(name: str):
    """A tile's tokens do not depend on other tiles: all groups of an image lie in one tile each."""
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt(model, [3, "image:20x12", 5], [2, "image:12x20", 4])
    with trim(model, ToMe(keep_ratio=0.5)) as session:
        together = model(**inputs).logits[:, -1]
        kept = [len(session.trace.kept(0, row)) for row in range(2)]
        assert kept == [n // 2 for n in session.trace.n_visual]
    for row, logits in enumerate(together):
        with trim(model, ToMe(keep_ratio=0.5)):
            alone = model(**family.alone(model, ([3, "image:20x12", 5], [2, "image:12x20", 4]), row)).logits[0, -1]
        assert deviation(logits, alone) < 1e-4


class Silent(ToMe):
    """Gives no schedule."""

    name: ClassVar[str] = "silent"

    def merges_in_tower(self, tokens: int, blocks: int) -> Any:
        return "none"


def test_refusals():
    model = tiny_llava()
    with trim(model, Silent()), pytest.raises(StrategyError, match="merges_in_tower.*tuple of integers"):
        model(**prompt(model, *ROWS))
    with pytest.raises(UnsupportedError, match="not read the vision tower"):
        trim(model, {"spatial": [{"name": "tome"}, {"name": "fastervlm"}]})
    with pytest.raises(UnsupportedError, match="2 x 2 patches"):
        trim(FAMILIES["qwen2-vl"].model(), ToMe())
    family = FAMILIES["llava-onevision"]
    model = family.model()
    with trim(model, ToMe()), pytest.raises(UnsupportedError, match="pooled or resized"):
        model(**family.prompt(model, [3, "video:3", 5]))


@pytest.mark.parametrize(
    ("family", "options"),
    [("llava-clip", {"r": 3}), ("llava-clip", {"keep_ratio": 0.3, "rounds": "decreasing"}), ("llava-next", {"r": 5})],
)
@torch.no_grad()
def test_plans_count_what_the_tower_runs(family: str, options: dict[str, Any]):
    """FLOPs of the tower by the tokens that enter its parts; planned and measured are equal."""
    model = tiny_llava(side=5, tower="clip") if family == "llava-clip" else FAMILIES[family].model()
    inputs = (
        prompt(model, [3, "image", 5])
        if family == "llava-clip"
        else FAMILIES[family].prompt(model, [3, "image:20x20", 5])
    )
    strategy = ToMe(**options)
    tower = model.model.vision_tower
    seen: list[tuple[int, int, int]] = []
    for block in tower.encoder.layers:
        for module, kind in ((block.self_attn.q_proj, 0), (block.mlp, 1)):
            module.register_forward_pre_hook(lambda _, args, kind=kind: seen.append((kind, *args[0].shape[:2])))
    with trim(model, strategy) as session:
        model(**inputs)
        assert session._latest is not None
        (usage,) = usages(session._latest, session.layout.shape)
    d, inner = tower.config.hidden_size, tower.config.intermediate_size
    queries, fed = (sum(pieces * n for one, pieces, n in seen if one == kind) for kind in range(2))
    squares = sum(pieces * n * n for kind, pieces, n in seen if kind == 0)
    whole = 2 * (4 * queries * d * d + 2 * fed * d * inner + 2 * squares * d)
    shape = usage.shape
    assert vision_flops(shape, 1, usage.tower_pairs) == whole < vision_flops(shape, 1)
    planned = plan(strategy, shape, usage.n_visual, usage.n_text).usage
    assert planned.tower_pairs == usage.tower_pairs
    assert planned.layer_tokens == usage.layer_tokens
    assert planned.prefill_flops_whole == usage.prefill_flops_whole < usage.unpruned().prefill_flops_whole


def test_r_is_the_papers():
    """Of 576 patches, r = 16 in 23 blocks leaves 208; r and a share are either or."""
    shape = PRESETS["llava-1.5-7b"]
    assert ToMe(r=16).merges_in_tower(576, 23) == (16,) * 23
    assert ToMe(r=16).schedule(shape, 576).steps == ((0, 208),)
    assert ToMe(r=16).schedule(shape, 2 * 576).steps == ((0, 416),)
    assert ToMe(r=400).merges_in_tower(9, 3) == (4, 2, 1)
    assert ToMe(r=16).label() == "tome(r=16)"
    with pytest.raises(ValidationError, match="either keep_ratio or r"):
        ToMe(keep_ratio=0.5, r=3)
    with pytest.raises(StrategyError, match="vision tower whose size is known"):
        ToMe(r=16).schedule(model_shape(), 9)

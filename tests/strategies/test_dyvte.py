"""``dyvte`` against an obvious loop, against ``vtw``, and without the weights that it needs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.engine.cases import generate
from tests.models import alone, prompt, tiny_llava
from tests.strategies.sites_factory import counts_tensor, layer_site, model_shape
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.sites import Need
from tokentrim.contracts.trained.weights import Header, read_weights, write_weights
from tokentrim.counting.forecast import is_static
from tokentrim.errors import StrategyError
from tokentrim.session import trim
from tokentrim_strategies._dyvte_module import Routers, router_input
from tokentrim_strategies._dyvte_training import Constant, of_prompt
from tokentrim_strategies.dyvte import DyVTE
from tokentrim_strategies.vtw import Withdrawal

WIDTH = 6


def slow_leaves(routers: Routers, boundary: int, hidden: Any, valid: Any, behind: Any, margin: float) -> list[bool]:
    """The decision of every row, written from the formula with plain numbers."""
    router: Any = routers.layers[boundary - 1]
    first, second = (router[index].weight.tolist() for index in (0, 2))
    found: list[bool] = []
    for row in range(len(hidden)):
        tokens = [t for t in range(hidden.shape[1]) if valid[row][t]]
        last = tokens[-1]
        others = [t for t in tokens if behind[row][t] and t != last]
        size = hidden.shape[2]
        mean = [sum(float(hidden[row, t, i]) for t in others) / len(others) if others else 0.0 for i in range(size)]
        x = mean + [float(value) for value in hidden[row, last]]
        inner = [sum(w * v for w, v in zip(line, x, strict=True)) for line in first]
        inner = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in inner]
        stay, leave = (sum(w * v for w, v in zip(line, inner, strict=True)) for line in second)
        found.append(leave - stay > margin)
    return found


def random_text(rows: int, length: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, width, generator=generator)
    counts = torch.randint(1, length + 1, (rows,), generator=generator)
    valid = torch.arange(length) < counts.unsqueeze(1)
    before = torch.randint(0, length, (rows, 1), generator=generator)
    return hidden, valid, valid & (torch.arange(length) >= before)


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("boundary", [1, 2, 3])
def test_golden(boundary: int, margin: float):
    torch.manual_seed(boundary)
    routers = Routers(4, WIDTH, 5)
    for parameter in routers.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    text = random_text(12, 7, WIDTH, seed=boundary)
    strategy = DyVTE(margin=margin).holding(routers)
    n_visual = tuple(range(12))
    site = layer_site(n_visual, {Need.TEXT_HIDDEN: text}, boundary=boundary)
    state = strategy.begin(PromptInfo(n_visual, model_shape(4)))
    object.__setattr__(site, "state", state)
    selection = strategy.select(site, counts_tensor(*n_visual))
    expected = slow_leaves(routers, boundary, *text, margin)
    assert selection.counts == tuple(0 if goes else n for goes, n in zip(expected, n_visual, strict=True))
    assert {True, False} == set(expected)
    selection.check(n_visual, static=None)
    selection.check_indices(n_visual)


def test_the_mean_leaves_out_text_before_the_image_and_the_last_token():
    hidden = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    valid = torch.tensor([[True, True, True, True]])
    behind = torch.tensor([[False, True, True, True]])
    assert router_input(hidden, valid, behind).tolist() == [[3.0, 8.0]]
    assert router_input(hidden, valid, torch.tensor([[False, False, False, True]])).tolist() == [[0.0, 8.0]]
    shorter = torch.tensor([[True, True, True, False]])
    assert router_input(hidden, shorter, behind & shorter).tolist() == [[2.0, 4.0]]


def test_training_shows_a_router_what_it_will_see_in_use():
    hidden, valid, behind = random_text(5, 7, WIDTH)
    n_answer = (valid.sum(dim=1) - 1).clamp(max=2)
    full = of_prompt(hidden, valid, behind, n_answer)
    for row in range(5):
        real = int(valid[row].sum() - n_answer[row])
        alone_ = (hidden[row : row + 1, :real], valid[row : row + 1, :real], behind[row : row + 1, :real])
        assert torch.allclose(router_input(*full)[row], router_input(*alone_)[0])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_constant_router_is_vtw(k: int):
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5], [9], [2, "image", 4, "image", 7])
    with trim(model, DyVTE().holding(Constant(k))) as session:
        ids, logits = generate(model, inputs, 5)
        trace = session.trace
    with trim(model, Withdrawal(k=k)) as session:
        expected_ids, expected = generate(model, inputs, 5)
        for layer in range(6):
            for row in range(3):
                assert torch.equal(trace.kept(layer, row), session.trace.kept(layer, row))
    assert torch.equal(ids, expected_ids)
    assert torch.equal(logits, expected)


class _ByText(torch.nn.Module):
    """Leaves at a boundary that follows from the prompt's own text."""

    def forward(self, boundary: int, hidden: Any, valid: Any, behind: Any) -> torch.Tensor:
        wanted = 1 + valid.sum(dim=1) % 4
        return torch.nn.functional.one_hot((wanted == boundary).long(), 2).float()


def test_rows_decide_on_their_own():
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5], [2, "image", 4, "image", 7], ["image", 2])
    strategy = DyVTE().holding(_ByText())
    with trim(model, strategy) as session:
        ids, _ = generate(model, inputs, 5)
        trace = session.trace
    exits: set[int] = set()
    for row, texts in enumerate((8, 13, 2)):
        tokens = [len(trace.kept(layer, row)) for layer in range(6)]
        leaves = 1 + texts % 4
        exits.add(leaves)
        assert tokens == [trace.n_visual[row]] * leaves + [0] * (6 - leaves)
        single = alone(inputs, row, 16)
        with trim(model, strategy):
            assert generate(model, single, 5)[0][0].tolist() == ids[row].tolist()
    assert len(exits) > 1


def test_routers_that_stay_change_nothing():
    model = tiny_llava(side=4)
    inputs = prompt(model, [3, "image", 5])
    expected = generate(model, inputs, 4)[1]
    with trim(model, DyVTE().holding(Constant(-1))):
        assert torch.equal(generate(model, inputs, 4)[1], expected)


def test_a_higher_margin_never_leaves_earlier():
    routers, text = Routers(2, WIDTH, 5), random_text(20, 7, WIDTH)
    stay, leave = routers(1, *text).unbind(dim=1)
    order = [int((leave - stay > margin).sum()) for margin in (-1.0, -0.2, 0.0, 0.2, 1.0)]
    assert order == sorted(order, reverse=True)


def test_counts_depend_on_the_data():
    assert not is_static(DyVTE())
    assert DyVTE().schedule(model_shape(4), 9).steps == ((1, 9), (2, 9), (3, 9))
    assert DyVTE().sizes(model_shape(4)) == {"width": 8}


# ---------------------------------------------------------------------- weights


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return DyVTE().untrained(model_shape(4), tmp_path / "routers.safetensors")


def refuses(file: Path | None, match: str) -> None:
    with pytest.raises(StrategyError, match=match):
        DyVTE(weights=file).prepare(model_shape(4))


def test_weights_are_read_once_per_file_and_noticed_when_they_change(file: Path):
    shape, strategy, cpu = model_shape(4), DyVTE(weights=file), torch.device("cpu")
    first = strategy.held(shape).on(cpu)
    assert strategy.held(shape).on(cpu) is first
    assert not any(parameter.requires_grad for parameter in first.parameters())
    strategy.untrained(shape, file, seed=1)
    assert strategy.held(shape).on(cpu) is not first


def test_initial_weights_follow_the_seed_and_leave_torchs_generator_alone(file: Path, tmp_path: Path):
    before = torch.random.get_rng_state()
    again = DyVTE().untrained(model_shape(4), tmp_path / "again.safetensors")
    other = DyVTE().untrained(model_shape(4), tmp_path / "other.safetensors", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.read_bytes() == file.read_bytes() != other.read_bytes()


def test_without_weights_it_says_how_to_train():
    refuses(None, r"have weights for this model \(layers 4, hidden_size 16, heads 2\).*tokentrim train dyvte --model")


def test_a_missing_file_and_one_that_is_not_safetensors(tmp_path: Path):
    refuses(tmp_path / "none.safetensors", "the weights file must be there")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle.pt")
    refuses(tmp_path / "pickle.pt", "be readable safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    refuses(tmp_path / "other.safetensors", "have the header of tokentrim-weights-1")


def test_a_damaged_file(file: Path):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    refuses(file, "hold the tensors that it was written with")
    file.write_bytes(bytes(data[: len(data) // 2]))
    refuses(file, "be readable safetensors")


def test_weights_of_another_model_or_strategy(file: Path):
    with pytest.raises(StrategyError, match=r'made for \{"layers": 5.*got .*layers.*4'):
        DyVTE(weights=file).prepare(model_shape(5))
    header, tensors = read_weights(file)
    write_weights(file, tensors, Header("quecc", header.made_for, header.sizes))
    refuses(file, "be of strategy 'dyvte'; got 'quecc'")


def test_tensors_of_other_shapes_and_numbers_that_are_none(file: Path):
    header, tensors = read_weights(file)
    write_weights(file, tensors, Header("dyvte", header.made_for, {"width": 3}))
    refuses(file, "have the shapes")
    write_weights(file, tensors, Header("dyvte", header.made_for, {"depth": 3}))
    refuses(file, "sizes in .* must fit the strategy")
    name = next(iter(tensors))
    write_weights(file, {**tensors, name: tensors[name] * math.nan}, header)
    refuses(file, "be finite")
    write_weights(file, {**tensors, name: tensors[name].int()}, header)
    refuses(file, "hold floating-point numbers")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": {"width": 10**12}}, "sizes in .* must be in 1.."),
        ({"sizes": {"width": -1}}, "sizes in .* must be in 1.."),
        ({"sizes": {"width": 2.5}}, "whole numbers of its model and module"),
        ({"sizes": [3]}, "whole numbers of its model and module"),
        ({"made_for": {"layers": "4"}}, "whole numbers of its model and module"),
        ({"strategy": ["dyvte"]}, "name its strategy"),
        ({"model": {"sketch": [1]}}, "name its strategy"),
        ({"model": {"sketch": {"a": [None]}}}, "name its strategy"),
        ({"provenance": None}, "name its strategy"),
        ({"format": {}}, "be tokentrim-weights-1"),
        ("[" * 5000, "be JSON"),
        ("[]", "have the header"),
    ],
)
def test_a_header_that_says_nothing_of_sense(changes: dict[str, object] | str, message: str, file: Path):
    from safetensors.torch import load_file, save_file

    with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
        about = json.loads(opened.metadata()["tokentrim"])
    text = changes if isinstance(changes, str) else json.dumps({**about, **changes})
    save_file(load_file(file), file, metadata={"tokentrim": text})
    refuses(file, message)


def test_what_is_no_regular_file_is_no_weights_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "a\0b", "x" * 300):
        refuses(tmp_path / name, "weights file .* must be (readable|there)")

"""Patterns on matrices small enough to check by eye, and against every mask there is."""

from itertools import combinations

import pytest
import torch
from torch import nn

from pruneonce.errors import ModelError, PatternBroken
from pruneonce.sparsity import patterns
from pruneonce.sparsity.masks import check_sparsity
from pruneonce.sparsity.patterns import PATTERNS

SCORE = torch.tensor(
    [
        [9.0, 1.0, 2.0, 8.0, 0.0, 0.0, 1.0, 0.0],
        [7.0, 6.0, 1.0, 2.0, 5.0, 6.0, 7.0, 8.0],
        [0.0, 9.0, 0.0, 9.0, 1.0, 1.0, 1.0, 1.0],
        [3.0, 3.0, 3.0, 3.0, 9.0, 0.0, 0.0, 9.0],
    ]
)
KEPT = {
    "unstructured": "#..#.... ##..#### .#.#.... #####..#",
    "1x4": "####.... ....#### ####.... ....####",  # sums 20 1, 16 26, 18 4, 12 18
    "4x1": "##.#...# ##.#...# ##.#...# ##.#...#",  # sums 19 19 6 22 15 7 9 18
    "2:4": "#..#..## ##....## .#.#..## ..###..#",
    "4:8": "#.##..#. #....### .#.#..## ..###..#",
}


def drawn(mask: torch.Tensor) -> str:
    return " ".join("".join("#" if kept else "." for kept in row) for row in mask.tolist())


@pytest.mark.parametrize("name", PATTERNS)
def test_half_of_a_matrix_by_hand(name):
    """Rows are outputs, columns inputs; ties go to the lower index."""
    assert drawn(PATTERNS[name].mask(SCORE, 0.5)) == KEPT[name]
    assert set(PATTERNS) == set(KEPT)


@pytest.mark.parametrize(
    ("name", "sparsity", "blocks"), [("1x4", 0.3, 2), ("1x4", 0.32, 3), ("4x1", 0.7, 6), ("4x1", 0.05, 0), ("1x4", 1.0, 8)]
)
def test_a_share_of_blocks_is_rounded_to_the_nearest_block(name, sparsity, blocks):
    assert int((~PATTERNS[name].mask(SCORE, sparsity)).sum()) == 4 * blocks


@pytest.mark.parametrize(
    ("name", "sparsities", "kept"),
    [
        ("2:4", [0.0, 0.1, 0.125, 0.2, 0.4, 0.5], [4, 4, 4, 3, 2, 2]),
        ("4:8", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [8, 7, 6, 6, 5, 4]),
    ],
)
def test_a_ramp_to_n_of_m_takes_one_more_of_each_group_at_a_time(name, sparsities, kept):
    pattern, score = PATTERNS[name], torch.rand(3, 16)
    for sparsity, count in zip(sparsities, kept, strict=True):
        groups = pattern.mask(score, sparsity).view(-1, pattern.group)
        assert groups.sum(1).unique().tolist() == [count]


def allowed(name: str, shape: tuple[int, int], dropped: int) -> list[torch.Tensor]:
    """Every mask of this pattern in which `dropped` units (of each group) are pruned, out of the definition."""
    entries = [[(r, c)] for r in range(shape[0]) for c in range(shape[1])]
    if name == "1x4":
        entries = [[(r, c + i) for i in range(4)] for r in range(shape[0]) for c in range(0, shape[1], 4)]
    if name == "4x1":
        entries = [[(r + i, c) for i in range(4)] for r in range(0, shape[0], 4) for c in range(shape[1])]
    groups = [entries]
    if ":" in name:
        size = int(name.partition(":")[2])
        groups = [entries[i : i + size] for i in range(0, len(entries), size)]
    found = [torch.ones(shape, dtype=torch.bool)]
    for group in groups:
        grown = []
        for mask in found:
            for gone in combinations(group, dropped):
                grown.append(mask.clone())
                for r, c in (entry for unit in gone for entry in unit):
                    grown[-1][r, c] = False
        found = grown
    return found


@pytest.mark.parametrize(
    ("name", "shape", "sparsity", "dropped", "masks"),
    [
        ("unstructured", (2, 5), 0.4, 4, 210),
        ("1x4", (3, 8), 0.5, 3, 20),
        ("4x1", (8, 3), 0.5, 3, 20),
        ("2:4", (2, 8), 0.5, 2, 6**4),
        ("4:8", (2, 8), 0.5, 4, 70**2),
    ],
)
def test_no_other_mask_of_the_pattern_keeps_more(name, shape, sparsity, dropped, masks):
    score = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    found = PATTERNS[name].mask(score, sparsity)
    every = allowed(name, shape, dropped)
    assert len(every) == masks
    assert any(torch.equal(found, mask) for mask in every)
    assert score[found].sum() >= max(score[mask].sum() for mask in every) - 1e-6


def test_global_by_hand():
    """Six of twelve go, whichever matrix they are in; uniform takes half of each."""
    scores = [torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[2.5, -1.0], [7.0, 8.0]]), torch.zeros(2, 2)]
    uniform, over_model = (scope(patterns.UNSTRUCTURED)(scores, 0.5) for scope in patterns.SCOPES.values())
    assert [drawn(mask) for mask in uniform] == ["..##", ".. ##", ".. ##"]
    assert [drawn(mask) for mask in over_model] == [".###", "#. ##", ".. .."]


@pytest.mark.parametrize(("name", "shape"), [("1x4", (4, 6)), ("4x1", (6, 4)), ("2:4", (4, 6)), ("4:8", (8, 12))])
def test_a_matrix_that_does_not_divide_is_named(name, shape):
    linears = {"fits": nn.Linear(8, 8), "odd": nn.Linear(shape[1], shape[0])}
    with pytest.raises(
        ModelError, match=rf"pattern {name}, found weights \[out, in\] \{{'odd': \[{shape[0]}, {shape[1]}\]\}}"
    ):
        patterns.fitting(name, linears)
    assert patterns.fitting(name, {"fits": linears["fits"]}) is PATTERNS[name]
    assert patterns.fitting("unstructured", linears) == patterns.UNSTRUCTURED


@pytest.mark.parametrize("name", PATTERNS)
def test_check_sparsity_finds_one_zero_too_few(name):
    select = patterns.uniform(PATTERNS[name])
    zeros = {"a": ~PATTERNS[name].mask(SCORE, 0.5), "b": torch.ones(4, 8, dtype=torch.bool)}
    check_sparsity(zeros, 0.5, select)
    zeros["a"][tuple(zeros["a"].nonzero()[0])] = False
    with pytest.raises(PatternBroken, match=r"missing in 1 of 2 matrices: \{'a': 1\}"):
        check_sparsity(zeros, 0.5, select)


@pytest.mark.parametrize("name", ["1x4", "4x1", "2:4", "4:8"])
def test_zeros_enough_that_lie_elsewhere_are_not_enough(name):
    zeros = {"a": ~PATTERNS["unstructured"].mask(SCORE, 0.5)}
    check_sparsity(zeros, 0.5)
    with pytest.raises(PatternBroken, match="in its pattern"):
        check_sparsity(zeros, 0.5, patterns.uniform(PATTERNS[name]))


def test_check_sparsity_over_the_model_lets_a_matrix_keep_all():
    zeros = {"a": torch.zeros(2, 3, dtype=torch.bool), "b": torch.ones(2, 3, dtype=torch.bool)}
    over_model = patterns.over_model(patterns.UNSTRUCTURED)
    check_sparsity(zeros, 0.5, over_model)
    with pytest.raises(PatternBroken, match=r"\{'a': 3\}"):
        check_sparsity(zeros, 0.5)
    zeros["b"][1, 2] = False
    with pytest.raises(PatternBroken, match="missing in 1 of 2"):
        check_sparsity(zeros, 0.5, over_model)

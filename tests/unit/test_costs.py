"""Which kernel is chosen for each matrix of a model."""

import itertools

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneonce.deployment import costs
from pruneonce.deployment.costs import CONVERSION, Size

ATTENTION, UP, DOWN = (768, 768), (3072, 768), (768, 3072)
BERT = [ATTENTION, ATTENTION, ATTENTION, ATTENTION, UP, DOWN]  # one layer


def kernels(stored: float, processor: str, threads: int, sizes=BERT) -> list[str]:
    return [kernel for kernel, _ in costs.faster([Size(*s, stored) for s in sizes], processor=processor, threads=threads)]


@pytest.mark.parametrize("processor", costs.COSTS)
@pytest.mark.parametrize("threads", [0, 1, 2])
def test_few_words_run_sparse_and_many_do_not(processor, threads):
    assert kernels(0.1, processor, threads) == ["sparse"] * 6
    assert kernels(0.61, processor, threads) == ["stock"] * 6


def test_onnx_runtimes_faster_products_need_sparser_matrices():
    """85 % of zeros anywhere leave 48 % of the words, one thread."""
    chosen = {processor: set(kernels(0.48, processor, 1)) for processor in costs.COSTS}
    assert chosen == {"avx2": {"sparse"}, "avxvnni": {"sparse"}, "avx512vnni": {"sparse"}, "avx512vnni amx": {"stock"}}


@pytest.mark.parametrize("threads", [2, 64])
def test_the_choice_depends_on_the_threads(threads):
    """ONNX Runtime's passes around a product are shared badly between threads."""
    assert set(kernels(0.48, "avx512vnni amx", 1)) == {"stock"}
    assert set(kernels(0.48, "avx512vnni amx", threads)) == {"sparse"}


def test_no_number_of_threads_is_one_for_each_core(monkeypatch):
    for cores, kernel in ((1, "stock"), (8, "sparse")):
        monkeypatch.setattr(costs, "_cores", lambda cores=cores: cores)
        assert set(kernels(0.48, "avx512vnni amx", 0)) == {kernel}


def test_cores_are_not_hyperthreads():
    """As psutil counts them, which the library does not need."""
    assert costs._cores() == psutil.cpu_count(logical=False)


def test_a_dense_matrix_does_not_decide_for_the_sparse_ones():
    sizes = [Size(*ATTENTION, 0.1), Size(*ATTENTION, 1.0), Size(*ATTENTION, 0.1)]
    chosen = costs.faster(sizes, processor="avx512vnni", threads=1)
    assert [kernel for kernel, _ in chosen] == ["sparse", "stock", "sparse"]
    assert chosen[1][1] == "more than 60% of its words are stored"


def test_a_gain_that_is_smaller_than_two_conversions_is_left():
    """One matrix a little sparser than its neighbours, which run stock."""
    sizes = [Size(*ATTENTION, 0.9), Size(*ATTENTION, 0.55), Size(*ATTENTION, 0.9)]
    chosen = costs.faster(sizes, processor="avx512vnni amx", threads=2)
    assert chosen[1] == ("stock", "6,336 cycles, stock 7,989, less than with conversions")
    sizes[1] = Size(*ATTENTION, 0.1)
    assert costs.faster(sizes, processor="avx512vnni amx", threads=2)[1] == ("sparse", "1,152 cycles, stock 7,989")


def test_a_model_without_int8_matrices_has_no_choice():
    assert costs.faster([], processor="avx2", threads=1) == []


def size() -> st.SearchStrategy[Size]:
    sides = st.integers(1, 4096)
    return st.builds(Size, sides, sides, st.floats(0, 1))


@given(st.lists(size(), min_size=1, max_size=8), st.sampled_from(list(costs.COSTS)), st.booleans())
def test_no_other_choice_is_cheaper(sizes, processor, several):
    """Against every choice, for up to eight matrices."""

    def total(kernels: tuple[str, ...]) -> float:
        """With conversions between kernels that differ; before and after the matrices all is stock."""
        numbers = [*(size.inputs for size in sizes), sizes[-1].outputs]
        changes = zip(itertools.pairwise(["stock", *kernels, "stock"]), numbers, strict=True)
        cost = [costs._cycles(size, costs.COSTS[processor], several)[k] for size, k in zip(sizes, kernels, strict=True)]
        return sum(cost) + sum(CONVERSION * number for (before, after), number in changes if before != after)

    chosen = [kernel for kernel, _ in costs.faster(sizes, processor=processor, threads=2 if several else 1)]
    every = itertools.product(("sparse", "stock"), repeat=len(sizes))
    assert total(tuple(chosen)) == pytest.approx(min(map(total, every)))
    assert all(kernel == "stock" for kernel, s in zip(chosen, sizes, strict=True) if s.stored > costs.MOST_STORED)

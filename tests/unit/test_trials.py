"""Choosing a rate, sparsity while a task is learned, bytes of a pattern: against numbers worked by hand."""

import pytest
import torch

from pruneonce.sparsity import masks, patterns
from study import trials
from tests.conftest import PRUNABLE


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({1e-4: 0.5, 2e-4: 0.7, 4e-4: 0.6}, 2e-4),
        ({1e-4: 0.5, 2e-4: 0.7, 4e-4: 0.7}, 2e-4),  # a tie goes to the lower rate ...
        ({4e-4: 0.7, 2e-4: 0.7, 1e-4: 0.5}, 2e-4),  # ... wherever it stands in the grid
        ({3e-4: 0.0}, 3e-4),
    ],
)
def test_the_best_rate_is_that_of_the_highest_score_and_ties_go_to_the_lower(scores, best):
    assert trials.best_rate(scores) == best


def test_bitmap_bytes_give_the_papers_compression():
    dense = trials.bitmap_bytes(1000, 0, bits=32)
    assert dense == 4000
    assert trials.bitmap_bytes(1000, 900, bits=32) == 125 + 400
    assert dense / trials.bitmap_bytes(1000, 900, bits=8) == pytest.approx(17.8, abs=0.05)
    assert trials.bitmap_bytes(8, 8, bits=8) == 1
    with pytest.raises(ValueError, match="zeros <= weights"):
        trials.bitmap_bytes(8, 9, bits=8)


def test_pattern_bytes_add_up():
    pattern = {"a": torch.tensor([True] * 6 + [False] * 2), "b": torch.zeros(16, dtype=torch.bool)}
    assert trials.pattern_bytes(pattern, bits=32) == (1 + 2 * 4) + 16 * 4


def test_what_is_pruned_while_learning_may_have_a_pattern(classifier):
    linears = masks.mask_linears(classifier, PRUNABLE)
    blocks = patterns.uniform(patterns.fitting("1x4", linears))
    before_step = trials.pruned_while_learning(classifier, blocks, target=0.75, end=4, every=2)
    assert [before_step(step)["sparsity"] for step in range(5)][-1] == pytest.approx(0.75, abs=2e-3)
    for linear in linears.values():
        of_block = linear.mask.view(len(linear.mask), -1, 4).sum(-1)
        assert set(of_block.unique().tolist()) == {0, 4}


@pytest.mark.parametrize(
    ("end", "course"),
    [
        # 0.8 (1 - (1 - t/8)^3) at t = 0, 4, 8; between them the masks stay
        (8, [0, 0, 0, 0, 0.7, 0.7, 0.7, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8]),
        (6, [0, 0, 0, 0, 0.77037, 0.77037, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]),  # the last one is no multiple of 4
        (0, [0.8] * 13),
    ],
)
def test_sparsity_rises_by_the_cubic_until_its_end(classifier, end, course):
    masks.mask_linears(classifier, PRUNABLE)
    before_step = trials.pruned_while_learning(classifier, target=0.8, end=end, every=4)
    found = [before_step(step)["sparsity"] for step in range(len(course))]
    assert found == pytest.approx(course, abs=2e-3)
    masks.bake(classifier)
    for zero in masks.zeros(classifier, PRUNABLE).values():
        assert int(zero.sum()) == masks.pruned_count(0.8, zero.numel())


def one_file(part):
    part.write_text("0.5")
    return part


def a_folder(part):
    part.mkdir()
    (part / "config.json").write_text("{}")
    (part / "model.safetensors").write_bytes(bytes(100))
    return part


def overwrite(path):
    path.write_bytes(path.read_bytes()[:-1] + b"7")


DAMAGES = {
    "changed": overwrite,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(b"\xff"),
}


@pytest.mark.parametrize("make", [one_file, a_folder])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("of", ["itself", "its checksum"])
def test_what_was_finished_is_believed_as_long_as_it_is_what_was_written(tmp_path, capsys, make, damage, of):
    path = tmp_path / "0.002-1"
    assert not trials.finished(path)
    trials.finish(make(tmp_path / "part"), path)
    assert trials.finished(path)
    assert not (tmp_path / "part").exists()
    file = path / "model.safetensors" if path.is_dir() else path
    DAMAGES[damage](file if of == "itself" else tmp_path / "0.002-1.sha256")
    assert not trials.finished(path)
    assert not path.exists()
    assert (
        capsys.readouterr().err == f"expected {path} as it was written, found it changed. It is discarded, and made again.\n"
    )
    trials.finish(make(tmp_path / "part"), path)
    assert trials.finished(path)


def test_what_a_kill_left_before_its_name_is_not_finished(tmp_path):
    one_file(tmp_path / "part")
    (tmp_path / "done.sha256").write_text("of what was to be")
    assert not trials.finished(tmp_path / "done")


@pytest.mark.parametrize("change", [lambda f: (f / "config.json").unlink(), lambda f: (f / "more").write_text("x")])
def test_a_folder_that_lost_or_got_a_file_is_not_believed(tmp_path, change):
    trials.finish(a_folder(tmp_path / "part"), tmp_path / "model")
    change(tmp_path / "model")
    assert not trials.finished(tmp_path / "model")

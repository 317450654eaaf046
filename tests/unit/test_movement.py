"""Movement scores by hand, against the paper's straight-through parameter, and through what a training step does to them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pruneonce.sparsity import masks, movement, patterns
from tests.conftest import cpu_engine


def scored(weight: list[list[float]]) -> movement.ScoredLinear:
    made = movement.ScoredLinear(nn.Linear(len(weight[0]), len(weight), bias=False))
    made.weight.data.copy_(torch.tensor(weight))
    return made


def test_the_score_is_minus_gradient_times_weight_by_hand_for_pruned_weights_as_well():
    linear = scored([[2.0, -1.0], [0.5, 4.0]])
    linear.mask[0, 1] = linear.mask[1, 0] = False
    x, outer = torch.tensor([[10.0, 100.0]]), torch.tensor([[3.0, -5.0]])
    (linear(x) * outer).sum().backward()  # dL/dW' = outer^T x
    assert linear.score.tolist() == [[-60.0, 300.0], [25.0, 2000.0]]
    assert linear.weight.grad.tolist() == [[30.0, 0.0], [0.0, -500.0]]  # of the weight itself: masked
    (linear(x) * outer).sum().backward()
    assert linear.score.tolist() == [[-120.0, 600.0], [50.0, 4000.0]]


class TopK(torch.autograd.Function):
    """The paper's Top_v: the mask of the best scores; its gradient passes straight through to the scores."""

    @staticmethod
    def forward(ctx, score, sparsity):
        return next(masks.uniform([score], sparsity)).float()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def test_training_is_that_of_the_paper_with_scores_as_parameters():
    """S and its mask a parameter and a function of autograd, both stepped by gradient descent; masks move each step."""
    torch.manual_seed(0)
    linear = scored(torch.randn(5, 6).tolist())
    weight, score = linear.weight.detach().clone().requires_grad_(), torch.zeros(5, 6, requires_grad=True)
    before, returned = linear.mask.clone(), 0
    for step in range(12):
        x, wanted, sparsity = torch.randn(7, 6), torch.randn(7, 5), 0.05 * step
        masks.prune(nn.Sequential(linear), sparsity, score=movement.score)
        mask = TopK.apply(score, sparsity)
        assert torch.equal(linear.mask, mask.detach().bool())
        returned += int((linear.mask & ~before).sum())
        before.copy_(linear.mask)
        F.mse_loss(linear(x), wanted).backward()
        F.mse_loss(F.linear(x, weight * mask), wanted).backward()
        with torch.no_grad():
            for parameter, rate in ((linear.weight, 0.3), (weight, 0.3), (score, 1.0)):
                parameter -= rate * parameter.grad
                parameter.grad = None
        torch.testing.assert_close(linear.weight, weight)
        torch.testing.assert_close(linear.score, score.detach())
    assert returned, "no weight came back, so the scores of pruned weights decided nothing"


def test_weights_that_shrink_go_and_weights_that_grow_stay_whatever_their_size():
    linear = scored([[0.1, 5.0, -0.1, -5.0]])
    (-linear(torch.ones(1, 4))).sum().backward()  # descent raises every weight by the same
    masks.prune(nn.Sequential(linear), 0.5, score=movement.score)
    assert linear.mask.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("name", ["1x4", "2:4"])
def test_signed_scores_are_pruned_in_patterns(name):
    linear = scored([[1.0] * 8])
    linear.score.copy_(torch.tensor([[-9.0, 1.0, 2.0, 3.0, 0.5, -0.5, 0.6, -0.6]]))
    masks.prune(nn.Sequential(linear), 0.5, score=movement.score, select=patterns.uniform(patterns.PATTERNS[name]))
    kept = {"1x4": [4, 5, 6, 7], "2:4": [2, 3, 4, 6]}
    assert linear.mask[0].nonzero()[:, 0].tolist() == kept[name]


def test_the_parts_of_a_batch_add_up_and_recomputed_activations_count_once():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    whole, parts, recomputed = (scored([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]) for _ in range(3))
    whole(x).square().mean().backward()
    for part in x.split(2):
        (parts(part).square().mean() / 3).backward()
    checkpoint(recomputed, x, use_reentrant=False).square().mean().backward()
    torch.testing.assert_close(parts.score, whole.score)
    assert torch.equal(recomputed.score, whole.score)


def test_a_score_is_float32_in_mixed_precision_and_still_without_gradients():
    linear = scored([[1.0, 2.0]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear(torch.tensor([[1.0, 1.0]])).sum()
    loss.backward()
    assert linear.score.dtype == torch.float32
    assert linear.score.tolist() == [[-1.0, -2.0]]
    with torch.no_grad():
        linear(torch.ones(1, 2))
    assert linear.score.tolist() == [[-1.0, -2.0]]


def test_a_score_is_no_part_of_a_checkpoint_and_goes_with_the_mask():
    model = nn.Sequential(nn.Linear(3, 3))
    masks.mask_linears(model, "", movement.ScoredLinear)
    movement.share_scores(model, cpu_engine())
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    masks.bake(model)
    assert type(model[0]) is nn.Linear


def test_a_linear_that_kept_no_score_is_an_error():
    with pytest.raises(TypeError, match="expected a ScoredLinear, found MaskedLinear"):
        movement.score(masks.MaskedLinear(nn.Linear(2, 2)))

import pytest
import torch

from cases import NAN, gradients
from modbalance import checks, presence
from modbalance.presence import masked_mean, masked_softmax, select

INF = float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=["nan", "inf", "-inf"])
def test_select_lets_nothing_of_a_masked_row_through(bad):
    x = torch.tensor([[1.0, 2.0], [bad, bad]], requires_grad=True)
    y = select(x, torch.tensor([True, False]))
    assert y.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    (gradient,) = gradients(y.square().sum(), [x])
    assert gradient.tolist() == [[2.0, 4.0], [0.0, 0.0]]


@pytest.mark.parametrize("dim", [None, 0, 1, -1, (0, 1)])
def test_masked_mean_is_the_mean_of_what_is_there(dim):
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    mask = torch.rand(3, 4) < 0.5
    mask[0], mask[1:, 0] = True, True
    counted = torch.where(mask[..., None], x, NAN)
    dims = (0, 1) if dim is None else dim if dim != -1 else 1
    torch.testing.assert_close(masked_mean(x, mask, dim), counted.nanmean(dims))


def test_masked_mean_pools_sequences_and_gives_zero_for_an_empty_one():
    x = torch.tensor([[[1.0], [3.0]], [[NAN], [NAN]]], requires_grad=True)
    pooled = masked_mean(x, torch.tensor([[True, True], [False, False]]), dim=1)
    assert pooled.tolist() == [[2.0], [0.0]]
    (gradient,) = gradients(pooled.sum(), [x])
    assert gradient.flatten().tolist() == [0.5, 0.5, 0.0, 0.0]


def test_masked_softmax_over_present_entries():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True], [True, False, False, True, True]])
    mask[:, 3] = False
    weights = masked_softmax(torch.where(mask, logits, NAN), mask, dim=0)
    for i in range(5):
        expected = torch.softmax(logits[mask[:, i], i], 0)
        torch.testing.assert_close(weights[mask[:, i], i], expected)
        assert (weights[~mask[:, i], i] == 0).all()
    (gradient,) = gradients(weights.square().sum(), [logits])
    assert gradient.isfinite().all()
    assert (gradient[:, 3] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_only_float64_stays_wider_than_float32(dtype):
    assert presence.upcast(torch.ones(1, dtype=dtype)).dtype == max(torch.float32, dtype, key=lambda d: d.itemsize)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "forward", "training", 3])
def test_reserved_modality_names_raise(name):
    with pytest.raises(ValueError, match=r"^Who: dims has the modality name .*; rename the modality\.$"):
        checks.check_dims("Who", {name: 3, "audio": 2})


def test_half_precision_is_summed_in_float32():
    x = torch.full((40, 3), 6e4, dtype=torch.float16)
    mean = masked_mean(x, torch.ones(40, dtype=torch.bool))
    assert mean.dtype == torch.float16
    assert torch.equal(mean, x[0])


@pytest.mark.parametrize("dim", [2, -3, (0, 2)])
def test_a_dimension_that_the_mask_lacks_raises(dim):
    with pytest.raises(ValueError, match="expected dimensions of mask, which has 2"):
        masked_mean(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), dim)


def test_an_integer_mask_raises():
    with pytest.raises(TypeError, match=r"mask is a torch.int64 tensor \(2,\).*pass mask.bool\(\)"):
        masked_mean(torch.ones(2), torch.ones(2).long())

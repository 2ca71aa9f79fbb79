import pytest
import torch
from torch import nn

from cases import CLASSES, DIMS, TASKS, width
from modbalance.heads import linear_heads, probe


@pytest.mark.parametrize("task", TASKS)
def test_one_linear_head_a_modality(task):
    heads = linear_heads(DIMS, CLASSES, task)
    assert {name: (h.in_features, h.out_features) for name, h in heads.items()} == {
        name: (dim, width(task)) for name, dim in DIMS.items()
    }


@pytest.mark.parametrize(
    "head", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))], ids=["linear", "mlp"]
)
def test_a_probe_moves_features_and_never_the_head(head):
    x = torch.randn(4, 3, requires_grad=True)
    outputs = probe(head, x)
    assert torch.equal(outputs, head(x))
    outputs.square().sum().backward()
    expected = torch.autograd.grad(head(x).square().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)
    assert all(p.grad is None for p in head.parameters())

import torch
from torch import nn

from modbalance.diagnostics import gradient_norms


def test_gradient_norms_are_those_of_all_parameters():
    encoders = nn.ModuleDict({"text": nn.Linear(3, 2), "audio": nn.Linear(4, 2)})
    encoders["text"](torch.randn(5, 3)).square().sum().backward()
    found = gradient_norms(encoders)
    flat = torch.cat([p.grad.flatten() for p in encoders["text"].parameters()])
    torch.testing.assert_close(found["text"], flat.norm())
    assert found["audio"] == 0

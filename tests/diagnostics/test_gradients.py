import pytest
import torch
from torch import nn

from modbalance.diagnostics import ModalityMonitor, gradient_norms


def test_gradient_norms_are_those_of_all_parameters():
    encoders = nn.ModuleDict({"text": nn.Linear(3, 2), "audio": nn.Linear(4, 2)})
    encoders["text"](torch.randn(5, 3)).square().sum().backward()
    found = gradient_norms(encoders)
    flat = torch.cat([p.grad.flatten() for p in encoders["text"].parameters()])
    torch.testing.assert_close(found["text"], flat.norm())
    assert found["audio"] == 0


def test_half_precision_gradients_do_not_overflow():
    encoder = nn.Linear(2000, 2).half()
    for p in encoder.parameters():
        p.grad = torch.full_like(p, 2000)
    assert gradient_norms({"text": encoder})["text"].item() == pytest.approx(2000 * 4002**0.5)


def test_shares_of_many_half_precision_steps_sum_to_one():
    names = ("text", "audio")
    encoders = {name: nn.Linear(3, 2).bfloat16() for name in names}
    monitor = ModalityMonitor(names, 2, probe=False)
    for _ in range(600):
        for encoder in encoders.values():
            for p in encoder.parameters():
                p.grad = torch.rand_like(p)
        monitor.update_gradients(encoders)
    shares = monitor._over_steps(monitor._gradient, torch.device("cpu"))
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    assert shares["text"] == pytest.approx(0.5, abs=0.02)

"""What someone gets from the wheel alone, without any of the extras."""

import importlib.util
import time

import torch


def main() -> None:
    start = time.process_time()
    import modbalance
    from modbalance.diagnostics import ModalityMonitor

    seconds = time.process_time() - start
    assert seconds < 0.2, f"importing modbalance takes {seconds:.2f} s beyond torch"
    assert "site-packages" in modbalance.__file__, f"not the wheel: {modbalance.__file__}"
    assert importlib.util.find_spec("matplotlib") is None, "not an environment of the wheel alone"

    features = {"audio": torch.randn(8, 6, requires_grad=True), "video": torch.randn(8, 4, requires_grad=True)}
    target = torch.arange(8) % 3
    balance = modbalance.EnergyCoordinator({"audio": 6, "video": 4}, num_outputs=3)
    balance(features, target).loss.backward()
    assert all(x.grad.isfinite().all() for x in features.values())

    monitor = ModalityMonitor(["audio", "video"], num_outputs=3)
    monitor.update(lambda z, present: z["audio"][:, :3] * present["audio"][:, None], features, target)
    try:
        monitor.plot()
    except ImportError as problem:
        print(problem)
    print(monitor.compute())
    print(f"modbalance {modbalance.__version__} alone with torch {torch.__version__}: {seconds:.2f} s to import")


if __name__ == "__main__":
    main()

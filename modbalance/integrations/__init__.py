"""Callbacks for trainers: `modbalance.integrations.lightning` and `modbalance.integrations.transformers`.

Neither trainer is needed to import modbalance; each module imports its own.
"""

from modbalance.protocol import Balancer


def check_steps(balance: Balancer, override: str) -> None:
    """Whether `step()` in a trainer's hook is all that a balancer needs."""
    if not isinstance(balance, Balancer):
        raise TypeError(
            f"BalancerCallback: balance is a {type(balance).__name__}, expected a balancer of modbalance.balancers; "
            "pass the one that the model calls."
        )
    if balance.solver:
        name = type(balance).__name__
        raise TypeError(
            f"BalancerCallback: {name} combines gradients in place of loss.backward(), for which the trainer has no "
            f"hook, expected a balancer that adds a loss term or changes gradients; {override}, as "
            "docs/trainers.md shows."
        )

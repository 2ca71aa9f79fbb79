"""A diagnosis in words: which modality is starved, which contributes nothing, what to try."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modbalance.diagnostics.diagnosis import Diagnosis

SMALL = 0.02  # of the score: a difference below it is no reason to change anything
ERRORS = 2.0  # standard errors that a difference must exceed, where they are known


def verdict(found: Diagnosis) -> str:
    """One line a remark. A difference counts above 0.02 and above two standard errors.

    Args:
        found: a diagnosis.

    Returns:
        one line for each remark, most important first; one line that states so where there is none.

    Examples:
        >>> from modbalance.diagnostics import Diagnosis
        >>> lag = {"text": 0.0, "audio": 0.2}
        >>> print(verdict(Diagnosis(0.9, 0.8, {"text": 0.6, "audio": 0.1}, lag=lag)))
        audio is starved: its encoder is 0.200 behind the same one trained alone. Try EnergyCoordinator.
    """
    if math.isnan(found.imbalance):
        return (
            "No verdict: all coalitions gave the same outputs, so nothing was removed. Check that predict leaves out "
            "what present marks as absent."
        )
    starved = [m for m in found.lag if _counts(found, "lag", m, found.lag[m])]
    lines = [
        f"{m} is starved: its encoder is {found.lag[m]:.3f} behind the same one trained alone. Try EnergyCoordinator."
        for m in sorted(starved, key=lambda m: -found.lag[m])
    ]
    guess = found.coalitions.get((), -math.inf)  # a model that is worse than a guess leaves that gap to no modality
    unused = {m: found.probe[m] - max(found.alone.get(m, math.nan), guess) for m in found.probe}
    for m, gap in unused.items():
        if m not in starved and _counts(found, "unused", m, gap):
            lines.append(
                f"{m} is not used as it could be: a probe on its features scores {gap:.3f} more than the model given "
                f"{m} alone, or than a constant guess. Try ModalityDropout in training, or ComplementaryEnhancer."
            )
    for m, drop in found.drop.items():
        if m in found.ignored:
            lines.append(
                f"{m} contributes nothing: removing it changes no output. Check that the model and predict read it."
            )
        elif math.isnan(found.alone.get(m, 0.0)) and not abs(drop) > 0:
            lines.append(f"{m} is present in no held-out sample.")
        elif _counts(found, "drop", m, -drop):
            lines.append(f"{m} does harm: the score rises by {-drop:.3f} without it. Try TrustDistiller, or drop it.")
        elif not _counts(found, "drop", m, drop) and found.shapley[m] < SMALL:
            lines.append(
                f"{m} contributes nothing that can be measured: drop {drop:.3f}, Shapley value "
                f"{found.shapley[m]:.3f}." + _why(found, m)
            )
    if lines:
        return "\n".join(lines)
    known = "" if found.lag else " Whether an encoder lags is not known: pass alone= to update, see train_alone."
    if found.imbalance >= 0.5:
        return (
            f"The contributions are uneven (imbalance {found.imbalance:.2f}) and nothing shows that an encoder is "
            "starved: one modality may simply know more." + known
        )
    return f"Nothing stands out (imbalance {found.imbalance:.2f})." + known


def _counts(found: Diagnosis, figure: str, modality: str, difference: float) -> bool:
    error = found.errors.get(figure, {}).get(modality, 0.0)
    return difference > max(SMALL, ERRORS * error)


def _why(found: Diagnosis, m: str) -> str:
    """Whether its features know the target."""
    if m not in found.probe or () not in found.coalitions:
        return ""
    knows = found.probe[m] - found.coalitions[()]
    if knows > SMALL:
        return f" A probe on its features scores {knows:.3f} above a constant guess: others may cover it."
    return " A probe on its features finds nothing either: look at its data, then at its encoder."

"""The plots of method.md: what each term of the loss asks for, computed by the library itself.

python docs/terms.py [FOLDER]      writes term-*.png, by default into docs/assets
"""

import math
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from modbalance.functional import alignment_loss, energy_gap, redundancy_loss, trust_weights
from modbalance.kernels import energy_penalty

BLUE, ORANGE, GREEN = "#4477aa", "#ee7733", "#228833"
torch.manual_seed(0)


def alignment(left: Axes, right: Axes) -> None:
    """Turn one modality's parts away from the other's, by the same angle in every sample."""
    angles = torch.linspace(0, math.pi, 61)
    a = nn.functional.normalize(torch.randn(32, 64), dim=1)
    away = torch.randn(32, 64)
    away = nn.functional.normalize(away - (away * a).sum(1, keepdim=True) * a, dim=1)
    turned = [math.cos(t) * a + math.sin(t) * away for t in angles]
    degrees = torch.rad2deg(angles)
    left.plot(degrees, [alignment_loss({"a": a, "b": b}) for b in turned], color=BLUE)
    left.set(title="Alignment: shared parts should agree", ylabel="L_inv")
    for cosine, colour in (("squared", BLUE), ("plain", ORANGE)):
        values = [redundancy_loss({"a": a, "b": b}, cosine=cosine) for b in turned]
        right.plot(degrees, values, color=colour, label=f'cosine="{cosine}"')
    right.set(title="Redundancy: private parts should be unrelated", ylabel="L_dis")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set(xlabel="angle between the two modalities (degrees)", xticks=range(0, 181, 45))


def reconstruction(left: Axes, right: Axes) -> None:
    """A weak feature that must be rebuilt from another one: with its target detached, and without."""
    source = torch.randn(256, 8)
    for detached, colour, label in ((True, BLUE, "target detached, as here"), (False, ORANGE, "target not detached")):
        torch.manual_seed(0)
        weak = (source[:, :4] + torch.randn(256, 4)).requires_grad_()
        generator = nn.Linear(8, 4)
        optimizer = torch.optim.Adam([weak, *generator.parameters()], lr=0.02)
        errors, variances = [], []
        for _ in range(300):
            loss = (generator(source) - (weak.detach() if detached else weak)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            errors.append(loss.item())
            variances.append(weak.var(0).mean().item())
        left.plot(errors, color=colour, label=label)
        right.plot(variances, color=colour)
    left.set(title="Rebuilding a modality from another", xlabel="step", ylabel="reconstruction error", ylim=0)
    right.set(title="What becomes of the features", xlabel="step", ylabel="their variance", ylim=0)
    left.legend(frameon=False)


def gap(left: Axes, right: Axes) -> None:
    """Two energies that only the gap moves."""
    for axes, kind, title in ((left, "pull", 'gap="pull"'), (right, "paper", 'gap="paper"')):
        energies = torch.tensor([[2.0], [0.5]], requires_grad=True)
        optimizer = torch.optim.SGD([energies], lr=0.1)
        path = []
        for _ in range(60):
            path.append(energies.detach().flatten().tolist())
            optimizer.zero_grad()
            energy_gap(energies, torch.ones(2, 1, dtype=torch.bool), kind).backward()
            optimizer.step()
        for values, colour, label in zip(zip(*path, strict=True), (ORANGE, BLUE), ("weak", "strong"), strict=True):
            axes.plot(values, color=colour, label=f"{label} modality")
        axes.set(title=title, xlabel="step", ylabel="energy", ylim=(0, 2.2))
    right.legend(frameon=False)


def penalty(left: Axes, right: Axes) -> None:
    """One feature, one linear head of two classes whose boundary is at 0; the true class is on the right."""
    z = torch.linspace(-4, 4, 161)[:, None]
    weight, bias, target = torch.tensor([[-1.0], [1.0]]), torch.zeros(2), torch.ones(161, dtype=torch.long)
    for alpha, colour in ((0.0, BLUE), (0.1, ORANGE), (0.5, GREEN)):
        energy, norm = energy_penalty(
            [z], [weight], [bias], target, task="classification", alpha=alpha, beta=1, gamma=0
        )
        left.plot(z, energy[0], color=colour, label=f"alpha={alpha}")
        right.plot(z, norm[0], color=colour)
    left.set(title="Energy of a feature", xlabel="z, true class to the right of 0", ylabel="E", ylim=(0, 9))
    right.set(title="Penalty: low where the energy is flat", xlabel="z", ylabel="‖dE/dz‖²", ylim=(0, 9))
    left.legend(frameon=False)


def trust(left: Axes, right: Axes) -> None:
    """Two teachers; the second keeps its standard deviation while that of the first grows."""
    deviation = torch.logspace(-2, 1, 100)
    for other, colour in ((0.1, BLUE), (0.5, ORANGE), (2.0, GREEN)):
        weights = trust_weights({"a": deviation**2, "b": torch.full((100,), other**2)})
        left.plot(deviation, weights["a"], color=colour, label=f"{other}")
    left.set(title="Trust in a modality", xlabel="standard deviation its teacher states", ylabel="w", ylim=(0, 1.05))
    left.legend(frameon=False, loc="lower left", title="the other's")
    right.plot(deviation, torch.exp(-deviation), color=BLUE, label="confidence c")
    right.plot(deviation, 1 / torch.log1p(deviation**2), color=ORANGE, label="reliability rho")
    right.set(title="Its two factors", xlabel="standard deviation", yscale="log")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xscale("log")


def main(folder: Path) -> None:
    for draw in (alignment, reconstruction, gap, penalty, trust):
        figure = Figure(figsize=(8.4, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw(left, right)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.title.set_fontsize(10)
        figure.savefig(folder / f"term-{draw.__name__}.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "assets")

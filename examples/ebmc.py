"""EBMC in one file: two stages, four components, three toy modalities. Copy it; put in your encoders and your data.

python examples/ebmc.py

The method page of the documentation walks through it. `examples/ebmc_msa` adds files, missing modalities, selection
of epochs and reports.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance import ComplementaryEnhancer, EnergyCoordinator, SemanticDecoupler, Teacher, TrustDistiller

SIZES = {"text": 32, "audio": 12, "vision": 16}  # input features by modality
CLASSES, DIM = 3, 32
ZETA, BETA, GAMMA, ETA = 0.5, 0.1, 0.1, 0.1  # the paper's loss weights


class UnimodalBranch(nn.Module):
    """One modality from its input to its own prediction; a frozen copy of it is a teacher."""

    def __init__(self, encoder: nn.Module, private: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.private, self.head = encoder, private, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.private(self.encoder(x)))


class EBMC(nn.Module):
    """Encoders, the four components, and a fusion head."""

    def __init__(self) -> None:
        super().__init__()
        dims = dict.fromkeys(SIZES, DIM)
        self.encoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(s, DIM), nn.GELU(), nn.Linear(DIM, DIM)) for m, s in SIZES.items()}
        )
        self.decouple = SemanticDecoupler(dims, DIM, CLASSES)
        self.enhance = ComplementaryEnhancer(dims, DIM, CLASSES)
        self.coordinate = EnergyCoordinator(dims, CLASSES, gap="paper")
        self.distill = TrustDistiller(CLASSES)
        self.head = nn.Linear(DIM, CLASSES)
        self.teachers = nn.ModuleDict()  # empty in stage I

    def forward(self, x: dict[str, Tensor], target: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Outputs `(B, CLASSES)`, and the loss where there is a target."""
        z = {m: encoder(x[m]) for m, encoder in self.encoders.items()}
        teacher_outputs = {m: teacher(x[m]) for m, teacher in self.teachers.items()}
        equal = {m: torch.full((len(v),), 1 / len(z)) for m, v in z.items()}
        weights = self.distill.trust(teacher_outputs) if teacher_outputs else equal

        def predict(features: dict[str, Tensor]) -> Tensor:
            return self.head(self.distill.fuse(features, weights))

        balanced = self.coordinate(z, target)  # EMC: energies of the encoders' features
        parts = self.decouple(z, target)  # MSD: shared and private parts
        enhanced = self.enhance(z, parts.shared, parts.private, predict, target)  # CCE: each rebuilt from all parts
        outputs = predict(enhanced.features)
        if target is None:
            return outputs, None
        loss = F.cross_entropy(outputs, target) + ZETA * parts.loss + BETA * enhanced.loss
        if not teacher_outputs:  # stage I: enhance; of the coordinator only the probe heads learn
            return outputs, loss + balanced.fit
        # Stage II: balance. IMTD draws the prediction to the teachers by the trust in each.
        return outputs, loss + GAMMA * balanced.loss + ETA * self.distill(outputs, teacher_outputs).loss

    def start_balancing(self) -> None:
        """Freeze a teacher of each modality: stage II begins."""
        for m in SIZES:
            branch = UnimodalBranch(self.encoders[m], self.decouple.private[m], self.decouple.heads[m])
            self.teachers[m] = Teacher(branch)


def make_data(rows: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Each class has a centre in every modality; text separates the classes best."""
    noise, centres = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (rows,), generator=noise)
    distance = {"text": 0.35, "audio": 0.25, "vision": 0.2}
    x = {
        m: distance[m] * torch.randn(CLASSES, s, generator=centres)[target] + torch.randn(rows, s, generator=noise)
        for m, s in SIZES.items()
    }
    return x, target


def train(model: EBMC, x: dict[str, Tensor], target: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(target)).split(64):
            _, loss = model({m: v[rows] for m, v in x.items()}, target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: EBMC, x: dict[str, Tensor], target: Tensor) -> float:
    return (model.eval()(x)[0].argmax(1) == target).float().mean().item()


def main(seed: int = 0, epochs: int = 5) -> tuple[float, float]:
    """Test accuracy after each stage."""
    torch.manual_seed(seed)
    model, data, test = EBMC(), make_data(600, 2 * seed + 1), make_data(600, 2 * seed + 2)
    train(model, *data, epochs)
    first = accuracy(model, *test)
    print(f"stage I,  enhance: test accuracy {first:.3f}")
    model.start_balancing()
    train(model, *data, epochs)
    second = accuracy(model, *test)
    print(f"stage II, balance: test accuracy {second:.3f}")
    return first, second


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    main()

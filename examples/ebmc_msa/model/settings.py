"""Everything that can be set about a run, with the defaults that all data sets share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

COMPONENTS = ("msd", "cce", "emc", "imtd")
PROTOCOLS = ("conditions", "random", "frames", "noise")  # of robustness
ORDERS = ("enhance-balance", "balance-enhance", "joint")  # of the stages
ENCODERS = ("transformer", "mean")  # of modalities with a time axis
CONTEXTS = ("none", "gru", "transformer")  # encoders of conversations
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class Settings:
    """`L = L_task + zeta L_MSD + beta L_CCE + gamma L_EMC + eta L_IMTD`; the paper's values where it has any."""

    zeta: float = 0.5  # paper
    beta: float = 0.1  # paper
    gamma: float = 0.1  # paper
    eta: float = 1.0  # paper: 0.1
    lambda_1: float = 0.1  # paper
    lambda_2: float = 4.0  # paper: 0.1, by which a unimodal path of two hardly learns
    without: tuple[str, ...] = ()  # components left out
    order: str = "enhance-balance"  # paper

    stage1_epochs: int = 100  # paper
    stage2_epochs: int = 100  # paper
    batch_size: int = 64  # paper
    patience: int = 15  # epochs without a better validation score or loss; the rest is ours
    patience_steps: int = 300  # at least that many steps, which on small data are more epochs
    warmup_steps: int = 300  # of all regularisers; see training/schedule.py
    lr: float = 1e-3
    weight_decay: float = 1e-2
    encoder: str = "transformer"
    context: str = "none"  # encoder of conversations
    causal: bool = False  # whether it reads the past alone
    shuffled: bool = False  # the control: conversations in random order
    class_weight: str = "none"
    finetune_text: str | None = None  # folder of a BERT
    text_lr: float = 2e-5  # of its weights
    dim: int = 64
    dropout: float = 0.3
    modality_dropout: float = 0.3
    corruption: float = 0.25  # chance that a modality of a training sample is spoilt; see spoil.py

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        return cls(**{**values, "without": tuple(values["without"])})


# The synthetic set is easy and the run without arguments is a first look: under two minutes on a CPU.
SYNTHETIC = {"stage1_epochs": 15, "stage2_epochs": 15, "patience": 5}

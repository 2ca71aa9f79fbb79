"""Everything that can be set about a run, with the defaults that all data sets share. Does not import torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

COMPONENTS = ("msd", "cce", "emc", "imtd")
PROTOCOLS = ("conditions", "random", "conversations", "unequal", "frames", "noise")  # of robustness
ORDERS = ("enhance-balance", "balance-enhance", "joint")  # of the stages
ENCODERS = ("transformer", "mean")  # of modalities with a time axis
CONTEXTS = ("none", "gru", "transformer")  # encoders of conversations
CLASS_WEIGHTS = ("none", "balanced")


def checked(kind: type, test: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """A `type` for argparse that refuses values which fail `test`."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not test(value):
            raise argparse.ArgumentTypeError(f"{text}, expected {expected}")
        return value

    convert.__name__ = kind.__name__
    return convert


count = checked(int, lambda value: value >= 0, "a whole number from 0")
whole = checked(int, lambda value: value >= 1, "a whole number from 1")
positive = checked(float, lambda value: value > 0, "a positive number")
probability = checked(float, lambda value: 0 <= value < 1, "a probability in [0, 1)")


def rates(text: str) -> float | tuple[tuple[str, float], ...]:
    """A probability, or one by modality: `text=0.1,audio=0.5`."""
    if "=" not in text:
        return probability(text)
    parts = [part.rpartition("=") for part in text.split(",")]
    names = [name for name, _, _ in parts]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text}, expected each modality once, as in text=0.1,audio=0.5")
    return tuple((name, probability(rate)) for name, _, rate in parts)


rates.by_name = True  # a table in a file of options


def option(default: Any, help: str, **keywords: Any) -> Any:
    """A setting that is an option of train.py too; `keywords` are argparse's."""
    return field(default=default, metadata={"help": help, **keywords})


@dataclass(frozen=True)
class Settings:
    """`L = L_task + zeta L_MSD + beta L_CCE + gamma L_EMC + eta L_IMTD`; the paper's values where it has any."""

    zeta: float = 0.5  # paper
    beta: float = 0.1  # paper
    gamma: float = 0.0  # paper: 0.1, which changed nothing; see docs/method.md
    observe: bool = False  # EMC weighs modalities by their energies on validation, with gamma > 0
    eta: float = 1.0  # paper: 0.1
    lambda_1: float = 0.1  # paper
    lambda_2: float = 4.0  # paper: 0.1, with which one of two unimodal branches hardly learns
    without: tuple[str, ...] = ()  # components left out

    stage1_epochs: int = option(100, "at most, enhance", type=count, metavar="N")  # paper
    stage2_epochs: int = option(100, "at most, balance", type=count, metavar="N")  # paper
    patience: int = option(15, "epochs without a better validation score or loss", type=whole, metavar="N")
    warmup_steps: int = option(
        400, "of joint training at least, with a ramp of all else at its end", type=count, metavar="N"
    )
    joint_patience: int = 3  # epochs of joint training without progress after which EBMC begins that ramp
    batch_size: int = option(64, "utterances a step", type=whole, metavar="N")  # paper
    lr: float = option(1e-3, "learning rate of AdamW", type=positive, metavar="X")
    weight_decay: float = 1e-2
    modality_dropout: float | tuple[tuple[str, float], ...] = option(
        0.3,
        "chance that a training sample lacks a modality it has; of each: text=0.1,audio=0.5,vision=0.9",
        type=rates,
        metavar="P",
    )
    corruption: float = option(
        0.25,
        "chance that a modality of a training sample is corrupted by noise or dropped frames",
        type=probability,
        metavar="P",
    )
    order: str = option("enhance-balance", "of EBMC's stages", choices=ORDERS)  # paper
    encoder: str = option("transformer", "of sequences; mean averages frames without attention", choices=ENCODERS)
    context: str = "none"  # encoder of conversations
    causal: bool = False  # whether it reads the past alone
    shuffled: bool = False  # the control: conversations in random order
    class_weight: str = option("none", "balanced: in the loss all classes count alike", choices=CLASS_WEIGHTS)
    finetune_text: str | None = option(
        None, "a BERT on this disk, as save_pretrained writes it, that encodes text and is fine-tuned", metavar="DIR"
    )
    text_lr: float = option(2e-5, "learning rate of that BERT", type=positive, metavar="X")
    impute_context: bool = option(
        False,
        "with --context: take a modality that an utterance lacks from the nearest one of its conversation",
        action=argparse.BooleanOptionalAction,
    )
    dim: int = 64
    dropout: float = 0.3

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        dropout = values["modality_dropout"]
        if not isinstance(dropout, float):
            dropout = tuple((name, rate) for name, rate in dropout)
        return cls(**{**values, "without": tuple(values["without"]), "modality_dropout": dropout})


# The run without arguments is a first look: all its models in a minute on one CPU core. The frames of the synthetic
# set are independent, so there is nothing for attention to find; the warm-up is half of the first stage.
SYNTHETIC = {"stage1_epochs": 20, "stage2_epochs": 20, "warmup_steps": 200, "encoder": "mean"}

"""What a run keeps of one model trained from one seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ByModality = dict[str, float]
ByCondition = dict[str, dict[str, float]]  # metrics by condition


@dataclass(frozen=True)
class Record:
    """Plain numbers, lists and dicts, so that it survives JSON; lists are over test utterances."""

    model: str
    seed: int
    history: list[dict[str, Any]]  # by epoch; see `training/stages.py`
    epochs: dict[str, int]  # the selected one, by stage
    undone: bool  # whether the second stage is
    test: ByCondition
    contribution: dict[str, ByModality]  # before and after balancing
    trust: dict[str, list[float]]  # by modality; empty without teachers
    present: dict[str, list[bool]]
    error: list[float]
    fused: dict[str, list[list[float]]]  # features after, and for EBMC before balancing
    target: list[Any]
    temperatures: ByModality
    experts: dict[str, list[str]]  # that the prediction is made of, by subset of modalities
    cost: dict[str, dict[str, float]]  # seconds, epochs and step_ms by stage
    parameters: dict[str, int]  # student, teachers, encoders
    rows: list[dict[str, Any]]  # of the predictions file
    samples: dict[str, list[float]]  # score of each test utterance: full, missing, corrupted
    valid: dict[str, float]  # mean of these scores on validation

    @property
    def strength(self) -> dict[str, float]:
        """That of the selected epoch, by stage; 0 is joint training."""
        return {entry["stage"]: entry["strength"] for entry in self.history if entry["selected"]}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

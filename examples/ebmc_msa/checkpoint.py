"""A run's checkpoint: student, teachers and their calibration, and what is needed to read data again."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from batch import Spec
from data import DataError
from modbalance import Teacher
from model import EBMC, Concat
from settings import Settings

VERSION = 1


def build(name: str, spec: Spec, settings: Settings) -> EBMC | Concat:
    return EBMC(spec, settings) if name == "ebmc" else Concat(spec, settings)


def save(path: Path, name: str, seed: int, model: EBMC | Concat, settings: Settings) -> None:
    content = {
        "version": VERSION,
        "model": name,
        "seed": seed,
        "spec": model.spec.as_dict(),
        "settings": settings.as_dict(),
        "state": model.state_dict(),
        "balancing": getattr(model, "balancing", False),
        "teachers": {m: t.copy.state_dict() for m, t in getattr(model, "teachers", {}).items()},
        "scales": dict(getattr(model, "scales", {})),
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def read(path: Path, device: torch.device) -> tuple[str, int, EBMC | Concat]:
    """Model name, seed and the model as it was saved, in eval mode."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["version"] != VERSION:
            raise DataError(
                f"checkpoint: {path} has version {content['version']}, expected {VERSION}; train it again."
            )
        spec, settings = Spec.from_dict(content["spec"]), Settings.from_dict(content["settings"])
        model = build(content["model"], spec, settings).to(device)
        model.load_state_dict(content["state"])
        if isinstance(model, EBMC):
            model.balancing, model.scales = content["balancing"], content["scales"]
            for name, state in content["teachers"].items():
                teacher = Teacher(model.path(name))
                teacher.copy.load_state_dict(state)
                model.teachers[name] = teacher
        return content["model"], content["seed"], model.eval()
    except DataError:
        raise
    except Exception as problem:
        raise DataError(
            f"checkpoint: {path} cannot be read ({type(problem).__name__}: {problem}), expected one that train.py "
            "wrote; train it again."
        ) from problem

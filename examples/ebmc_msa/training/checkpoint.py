"""A run's checkpoint: student, teachers and their calibration, and what is needed to read data again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ebmc_msa.data import DataError
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.files import read_tensors, write_tensors
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.ensemble import TrustEnsemble
from ebmc_msa.model.prediction import Model
from ebmc_msa.model.settings import Settings
from ebmc_msa.report.run_view import CONTROL

VERSION = 6


def build(name: str, spec: Spec, settings: Settings) -> Model:
    return EBMC(spec, settings) if name == "ebmc" else Concat(spec, settings)


def save(path: Path, name: str, seed: int, model: Model, settings: Settings) -> None:
    content = {
        "version": VERSION,
        "model": name,
        "seed": seed,
        "ensemble": isinstance(model, TrustEnsemble),
        "spec": model.spec.as_dict(),
        "settings": settings.as_dict(),
        "state": model.state_dict(),
    }
    write_tensors(path, content)


def expected(run: Path) -> tuple[Any, tuple[float, float] | None] | None:
    """Kind and range of the labels that the models of a run were trained on; None without a checkpoint to read."""
    for path in sorted(run.glob("*.pt")):
        try:
            spec = Spec.from_dict(read_tensors(path)["spec"])
        except Exception:  # reported when it is read as a whole
            return None
        return spec.kind, spec.range
    return None


def read(path: Path, device: torch.device) -> tuple[str, int, Model]:
    """Model name, seed and the model as it was saved, in eval mode."""
    try:
        content = read_tensors(path, device)
        if content["version"] != VERSION:
            raise DataError(
                f"checkpoint: {path} has version {content['version']}, expected {VERSION}, which this version of "
                "train.py writes; train it again."
            )
        spec, settings = Spec.from_dict(content["spec"]), Settings.from_dict(content["settings"])
        model = build(content["model"].removesuffix(CONTROL), spec, settings)
        if content["ensemble"]:
            model = TrustEnsemble(model)
        model.to(device)
        model.load_state_dict(content["state"])
        return content["model"], content["seed"], model.eval()
    except DataError:
        raise
    except Exception as problem:
        raise DataError(
            f"checkpoint: {path} cannot be read ({type(problem).__name__}: {problem}), expected one that train.py "
            "wrote; train it again."
        ) from problem

"""A run's checkpoint: student, teachers and their calibration, and what is needed to read data again."""

from __future__ import annotations

from pathlib import Path

import torch

from ebmc_msa.data import DataError
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.files import read_tensors, write_tensors
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.settings import Settings
from ebmc_msa.report.run_view import CONTROL

VERSION = 3


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
    }
    write_tensors(path, content)


def read(path: Path, device: torch.device) -> tuple[str, int, EBMC | Concat]:
    """Model name, seed and the model as it was saved, in eval mode."""
    try:
        content = read_tensors(path, device)
        if content["version"] != VERSION:
            raise DataError(
                f"checkpoint: {path} has version {content['version']}, expected {VERSION}; train it again."
            )
        spec, settings = Spec.from_dict(content["spec"]), Settings.from_dict(content["settings"])
        model = build(content["model"].removesuffix(CONTROL), spec, settings).to(device)
        model.load_state_dict(content["state"])
        return content["model"], content["seed"], model.eval()
    except DataError:
        raise
    except Exception as problem:
        raise DataError(
            f"checkpoint: {path} cannot be read ({type(problem).__name__}: {problem}), expected one that train.py "
            "wrote; train it again."
        ) from problem

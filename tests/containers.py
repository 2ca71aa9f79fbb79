"""The same 18 utterances in every container, for the tests of the example pipeline's readers."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch

FRAMES = {"text": (6, 5), "audio": (8, 3), "vision": (7, 2)}
N = 18
SPLIT = np.repeat([0, 1, 2], 6)
IDS = [f"video{i // 2}[{i}]" for i in range(N)]


def utterances():
    """Fields of the .npz; row 1 lacks vision, float32 as every container can hold it."""
    rng = np.random.default_rng(0)
    found = {"y": np.round(rng.uniform(-3, 3, N), 1), "split": SPLIT, "id": np.array(IDS)}
    found["group"] = np.array([i.partition("[")[0] for i in IDS])
    for m, (frames, size) in FRAMES.items():
        x = rng.normal(size=(N, frames, size)).astype(np.float32)
        length = rng.integers(3, frames + 1, N)
        length[[0, 6, 12]] = frames  # so that each split is as long as the longest
        length[1] *= m != "vision"
        x[np.arange(frames) >= length[:, None]] = 0
        found |= {f"x_{m}": x, f"length_{m}": length}
    return found


def npz(home, fields):
    np.savez(home / "d.npz", **fields)
    return home / "d.npz"


def by_split(fields):
    """MulT's fields, padding last."""
    names = {"text": "x_text", "audio": "x_audio", "vision": "x_vision", "labels": "y", "id": "id"}
    return {
        split: {key: fields[name][i == SPLIT] for key, name in names.items()}
        for i, split in enumerate(("train", "dev", "test"))
    }


def tensors(x):
    return torch.from_numpy(x) if x.dtype.kind in "fi" else x.tolist()


def pt(home, fields):
    torch.save({name: tensors(x) for name, x in fields.items()}, home / "d.pt")
    return home / "d.pt"


def pth(home, fields):
    torch.save(
        {split: {k: tensors(x) for k, x in part.items()} for split, part in by_split(fields).items()}, home / "d.pth"
    )
    return home / "d.pth"


def old_pt(home, fields):
    content = {name: tensors(x) for name, x in fields.items()}
    torch.save(content, home / "d.pt", _use_new_zipfile_serialization=False)
    return home / "d.pt"


def safetensors(home, fields):
    save = pytest.importorskip("safetensors.torch").save_file
    metadata = {name: json.dumps(fields[name].tolist()) for name in ("id", "group")} | {"task": "regression"}
    save({name: tensors(x) for name, x in fields.items() if name not in metadata}, home / "d.safetensors", metadata)
    return home / "d.safetensors"


def safetensors_by_split(home, fields):
    save = pytest.importorskip("safetensors.torch").save_file
    parts = by_split(fields)
    x = {f"{split}.{k}": tensors(v) for split, part in parts.items() for k, v in part.items() if k != "id"}
    save(x, home / "d.safetensors", {f"{split}.id": json.dumps(part["id"].tolist()) for split, part in parts.items()})
    return home / "d.safetensors"


def h5(home, fields):
    h5py = pytest.importorskip("h5py")
    with h5py.File(home / "d.h5", "w") as file:
        for name, x in fields.items():
            file.create_dataset(name, data=x.astype("S20") if x.dtype.kind == "U" else x)
    return home / "d.h5"


def h5_groups(home, fields):
    h5py = pytest.importorskip("h5py")
    with h5py.File(home / "d.hdf5", "w") as file:
        for split, part in by_split(fields).items():
            for name, x in part.items():
                packed = {"compression": "gzip"} if x.dtype.kind == "f" else {}
                file.create_dataset(f"{split}/{name}", data=x.astype("S20") if name == "id" else x, **packed)
    return home / "d.hdf5"


def mat(home, fields):
    savemat = pytest.importorskip("scipy.io").savemat
    doubles = {name: x.astype(np.float64) for name, x in fields.items() if name in ("y", "split")}
    savemat(home / "d.mat", fields | doubles | {"y": fields["y"][:, None]}, do_compression=True)
    return home / "d.mat"


def manifest(home, fields):
    """Frames without their padding, one file a row and modality."""
    with (home / "table.csv").open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "split", "label", "group", *FRAMES])
        for i in range(N):
            paths = []
            for m in FRAMES:
                path = home / m / f"{i}.npy"
                path.parent.mkdir(exist_ok=True)
                length = fields[f"length_{m}"][i]
                np.save(path, fields[f"x_{m}"][i, :length])
                paths.append(f"{m}/{i}.npy" if length else "")
            split = ("train", "valid", "2")[SPLIT[i]]
            writer.writerow([IDS[i], split, fields["y"][i], fields["group"][i], *paths])
    return home / "table.csv"


def tuples(home, fields, name="dev", **changes):
    """As MAG-BERT has them, but with features of words in place of words."""
    splits = {"train": [], name: [], "test": []}
    for i in range(N):
        x = [fields[f"x_{m}"][i, : fields[f"length_{m}"][i]] for m in ("text", "vision", "audio")]
        splits[("train", name, "test")[SPLIT[i]]].append((tuple(x), fields["y"][i].reshape(1, 1), IDS[i]))
    (home / "mosi.pkl").write_bytes(pickle.dumps(splits | changes))
    return home / "mosi.pkl"

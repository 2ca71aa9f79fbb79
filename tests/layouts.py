"""Tiny files in the layouts people have."""

import pickle

import numpy as np

rng = np.random.default_rng(0)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def mmsa_split(rows=4, **changes):
    bert = np.zeros((rows, 3, 6))
    for i in range(rows):
        bert[i, 1, : 2 + i % 3] = 1
    fields = {
        "raw_text": np.array(["words"] * rows),
        "id": np.array([f"video{i // 2}$_${i}" for i in range(rows)]),
        "text": rng.normal(size=(rows, 6, 5)).astype(np.float16),  # [PAD] is not zero
        "text_bert": bert,
        "audio": rng.normal(size=(rows, 8, 3)),
        "audio_lengths": [3 + i % 4 for i in range(rows)],
        "vision": rng.normal(size=(rows, 7, 2)).astype(np.float32),
        "annotations": np.array(["Positive"] * rows, dtype=object),
        "classification_labels": np.ones(rows),
        "regression_labels": np.linspace(-3, 3, rows) * 0.9,
    } | changes
    return {key: value for key, value in fields.items() if value is not None}


def mmsa(tmp_path, **changes):
    return write(tmp_path / "any.name", {split: mmsa_split(**changes) for split in ("train", "valid", "test")})


def gcnet(root, *, classes=False, rows=3, videos=8, skip=(), labels=None, features=None):
    names = [f"Ses0{i}" for i in range(videos)]
    ids = {v: [f"{v}_{j}" for j in range(rows)] for v in names}
    if labels is None:
        labels = {v: [j % 3 if classes else np.float64(j - 1.5) for j in range(rows)] for v in names}
    splits = [set(names[:-2]), names[-2:]] if classes else [set(names[:-3]), {names[-3]}, names[-2:]]
    sets = [ids, labels, {v: ["F"] * rows for v in names}, {v: [""] * rows for v in names}, *splits]
    for folder, shape in (features or {"minilm-UTT": (4,), "hubert-UTT": (5, 3), "gait": (2,)}).items():
        for utterance in (u for v in names for u in ids[v] if (folder, u) not in skip):
            file = root / "features" / folder / f"{utterance}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, rng.normal(size=shape))
    return write(root / "labels.pkl", sets)


def npz(tmp_path, **changes):
    n = 12
    fields = {
        "x_lidar": rng.normal(size=(n, 3)),
        "x_vision": rng.normal(size=(n, 5, 2)),
        "length_vision": np.arange(n) % 5 + 1,
        "y": np.arange(n) % 4,
        "split": np.arange(n) % 3,
    } | changes
    path = tmp_path / "field.npz"
    np.savez(path, **{key: value for key, value in fields.items() if value is not None})
    return path

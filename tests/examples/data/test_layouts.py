"""The same utterances in every layout: each writes, loads and trains two steps, and all give the same batches."""

import pickle
from itertools import chain

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, convert, load
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView
from ebmc_msa.evaluation.predict import predict
from ebmc_msa.evaluation.scores import by_condition
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.settings import Settings

N = {"train": 10, "valid": 4, "test": 4}
FRAMES = {"text": (6, 5), "audio": (8, 3), "vision": (7, 2)}


@pytest.fixture(scope="module")
def utterances():
    """{split: (features, padding last; lengths; sentiment; ids)}; row 1 lacks vision, row 2 has a zero frame."""
    rng = np.random.default_rng(0)
    found = {}
    for split, n in N.items():
        x, lengths = {}, {}
        for m, (frames, size) in FRAMES.items():
            x[m] = rng.normal(size=(n, frames, size)).astype(np.float32)
            lengths[m] = rng.integers(3, frames + 1, n)
            lengths[m][1] *= m != "vision"
            x[m][np.arange(frames) >= lengths[m][:, None]] = 0
            x[m][2, 1] = 0
        y = np.round(rng.uniform(-3, 3, n), 1).astype(np.float32)
        found[split] = x, lengths, y, [f"{split}{i // 2}$_${i}" for i in range(n)]
    return found


def padding_first(x, lengths):
    out = np.zeros_like(x)
    for row, source, n in zip(out, x, lengths, strict=True):
        row[len(row) - n :] = source[:n]
    return out


def dump(path, content, protocol=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def mmsa(tmp_path, utterances):
    splits = {}
    for split, (x, lengths, y, ids) in utterances.items():
        mask = np.arange(6) < lengths["text"][:, None]
        splits[split] = {
            "raw_text": np.array(["words"] * len(y)),
            "id": np.array(ids),
            "text": x["text"] + (~mask)[..., None],  # [PAD] is not zero
            "text_bert": np.stack([mask, mask, ~mask], 1).astype(np.float64),
            "audio": x["audio"].astype(np.float64),
            "vision": x["vision"]
            + 9 * (np.arange(7) >= lengths["vision"][:, None])[..., None],  # nor is this padding
            "annotations": np.array(["Positive"] * len(y), dtype=object),
            "classification_labels": np.ones(len(y)),
            "regression_labels": y,
            "audio_lengths": lengths["audio"].tolist(),
            "vision_lengths": lengths["vision"].tolist(),
        }
    return dump(tmp_path / "unaligned_50.pkl", splits)


def mult(tmp_path, utterances, first=True, **changes):
    splits = {
        split: {m: padding_first(x[m], lengths[m]) if first else x[m] for m in FRAMES}
        | {"labels": y[:, None, None], "id": np.array(ids)[:, None]}
        | {key: value(split) for key, value in changes.items()}
        for split, (x, lengths, y, ids) in utterances.items()
    }
    return dump(tmp_path / "mosi_data_noalign.pkl", splits, 2)


def npz(tmp_path, utterances):
    parts = list(utterances.values())
    np.savez_compressed(
        tmp_path / "data.npz",
        **{f"x_{m}": np.concatenate([x[m] for x, *_ in parts]) for m in FRAMES},
        **{f"length_{m}": np.concatenate([lengths[m] for _, lengths, *_ in parts]) for m in FRAMES},
        y=np.concatenate([y for *_, y, _ in parts]),
        split=np.repeat(range(3), [len(y) for *_, y, _ in parts]),
        id=[i for *_, ids in parts for i in ids],
        group=[i.split("$_$")[0] for *_, ids in parts for i in ids],
        task="sentiment",
    )
    return tmp_path / "data.npz"


def converted(tmp_path, utterances):
    convert.convert(mult(tmp_path, utterances), tmp_path / "converted")
    return tmp_path / "converted"


LAYOUTS = {
    "MMSA": mmsa,
    "MulT": mult,
    "MulT, padding last": lambda *a: mult(*a, first=False),
    ".npz": npz,
    "converted": converted,
}


def batch(data, split):
    rows = torch.arange(len(data.splits[split]))
    return SplitView.of(data.splits[split], Spec.of(data), torch.device("cpu")).rows(rows)


def train_two_steps(data):
    model = EBMC(Spec.of(data), Settings(dim=8))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(batch(data, "train")).loss
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_same_utterances_give_identical_batches(tmp_path, utterances, layout):
    data = load(LAYOUTS[layout](tmp_path, utterances))
    assert (data.kind, data.modalities) == ("sentiment", ["text", "audio", "vision"])
    for name, (x, lengths, y, ids) in utterances.items():
        split = data.splits[name]
        assert split.id == ids
        assert split.group == [i.split("$_$")[0] for i in ids]
        assert torch.equal(split.target, torch.from_numpy(y))
        for m in FRAMES:
            assert torch.equal(split.features[m], torch.from_numpy(x[m]))
            assert split.lengths[m].tolist() == lengths[m].tolist()
            assert split.present[m].tolist() == (lengths[m] > 0).tolist()
    train_two_steps(data)


def test_pooled_layouts_of_the_same_utterances_give_identical_batches(tmp_path):
    """GCNet, MMSA, MulT and .npz with one vector per utterance."""
    rng = np.random.default_rng(0)
    ids = {split: [f"{split}{i}_1" for i in range(n)] for split, n in N.items()}
    x = {split: {m: rng.normal(size=(n, 3)).astype(np.float32) for m in ("text", "audio")} for split, n in N.items()}
    y = {split: rng.normal(size=n).round(2) for split, n in N.items()}
    gcnet = tmp_path / "gcnet"
    for split in N:
        for m, folder in (("text", "bert-UTT"), ("audio", "hubert-UTT")):
            (gcnet / "features" / folder).mkdir(parents=True, exist_ok=True)
            for i, row in zip(ids[split], x[split][m], strict=True):
                np.save(gcnet / "features" / folder / f"{i}.npy", row)
    videos = {split: [i.split("_")[0] for i in ids[split]] for split in N}
    of_video = {i.split("_")[0]: [i] for split in N for i in ids[split]}
    labels = {i.split("_")[0]: [value] for split in N for i, value in zip(ids[split], y[split].tolist(), strict=True)}
    dump(gcnet / "CMUMOSEI_features_raw_2way.pkl", [of_video, labels, {}, {}, *videos.values()])

    def fields(split, key):
        return {m: v[:, None] for m, v in x[split].items()} | {"id": np.array(ids[split]), key: y[split]}

    sources = [
        gcnet,
        dump(tmp_path / "mmsa.pkl", {split: fields(split, "regression_labels") for split in N}),
        dump(tmp_path / "mult.pkl", {split: fields(split, "labels") for split in N}),
    ]
    convert.convert(gcnet, tmp_path / "converted")
    sources.append(tmp_path / "converted")
    for source in sources:
        data = load(source)
        train_two_steps(data)
        for split in N:
            order = np.argsort(ids[split])  # GCNet folders are read by name
            assert sorted(data.splits[split].id) == sorted(ids[split])
            mine = np.argsort(data.splits[split].id)
            for m in x[split]:
                np.testing.assert_array_equal(batch(data, split).features[m].numpy()[mine], x[split][m][order])
            np.testing.assert_array_equal(data.splits[split].target.numpy()[mine], y[split].astype(np.float32)[order])


# MulT


def test_mult_of_iemocap_has_four_binary_emotions(tmp_path, utterances):
    rng = np.random.default_rng(1)
    truth = {split: rng.integers(2, size=(n, 4)) for split, n in N.items()}
    data = load(mult(tmp_path, utterances, labels=lambda split: np.eye(2)[truth[split]], id=lambda split: None))
    assert (data.kind, data.classes, data.labels) == ("multilabel", 4, ("neutral", "happy", "sad", "angry"))
    assert data.splits["test"].target.tolist() == truth["test"].tolist()
    train_two_steps(data)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1)])
def test_mult_label_shapes(tmp_path, utterances, shape):
    path = mult(tmp_path, utterances, labels=lambda split: utterances[split][2].reshape(shape).astype(np.float64))
    assert load(path).splits["test"].target.tolist() == utterances["test"][2].tolist()


def test_mult_of_mosei_has_sentiment_in_the_first_of_seven_columns(tmp_path, utterances):
    seven = {
        split: np.column_stack([y, np.full((len(y), 6), 2.5)])[:, None] for split, (_, _, y, _) in utterances.items()
    }
    data = load(mult(tmp_path, utterances, labels=seven.get))
    assert data.splits["test"].target.tolist() == utterances["test"][2].tolist()


def test_mult_names_of_python_2_are_video_start_and_end(tmp_path, utterances):
    names = {name: np.array([[b"video", b"0.5", b"%d" % i] for i in range(n)]) for name, n in N.items()}
    split = load(mult(tmp_path, utterances, id=names.get)).splits["test"]
    assert split.id[1] == "video_0.5_1"
    assert split.group == ["video"] * 4


def test_mult_infinite_audio_in_front_is_a_frame_and_becomes_zero(tmp_path, utterances):
    x = {name: padding_first(x["audio"], lengths["audio"]) for name, (x, lengths, *_) in utterances.items()}
    frames = 8 - utterances["train"][1]["audio"][0]
    x["train"][0, frames] = -np.inf
    split = load(mult(tmp_path, utterances, audio=x.get)).splits["train"]
    assert split.lengths["audio"][0] == 8 - frames
    assert not split.features["audio"][0, 0].any()


def test_mult_without_labels_to_predict(tmp_path, utterances):
    path = mult(tmp_path, utterances)
    content = pickle.loads(path.read_bytes())
    del content["train"], content["valid"], content["test"]["labels"]
    data = load(dump(path, content), labels=False)
    assert data.splits["test"].target is None
    assert data.splits["test"].lengths["audio"].tolist() == utterances["test"][1]["audio"].tolist()
    with pytest.raises(DataError, match=r"holds .*expected at least one of text, audio, vision and labels; add"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": lambda split: np.zeros((N[split], 4))},
            r"\['train'\]: labels has shape \(10, 4\), expected one.*keep",
        ),
        ({"labels": lambda split: ["a"] * N[split]}, r"labels are not numbers .*recode"),
        ({"labels": lambda split: np.full((N[split], 4, 2), np.nan)}, r"labels holds NaN.*label these"),
        ({"id": lambda split: [{}] * N[split]}, r"id holds a dict, expected one name per row; flatten"),
        ({"text": lambda split: np.zeros((N[split], 2, 2, 2))}, r"\['text'\]: features have shape \(10, 2, 2, 2\)"),
    ],
)
def test_mult_errors(tmp_path, utterances, changes, message):
    with pytest.raises(DataError, match=message):
        load(mult(tmp_path, utterances, **changes))


# GCNet


def gcnet(root, labels):
    """`labels`: {dialogue: labels}; the last two dialogues are the test split."""
    ids = {video: [f"{video}_F{j:03}" for j in range(len(y))] for video, y in labels.items()}
    rng = np.random.default_rng(0)
    for folder in ("minilm-UTT", "egemaps-UTT"):
        (root / "features" / folder).mkdir(parents=True)
        for name in chain(*ids.values()):
            np.save(root / "features" / folder / f"{name}.npy", rng.normal(size=(2, 3)).astype(np.float32))
    names = list(labels)
    return dump(root / "IEMOCAP_features_raw_6way.pkl", [ids, labels, {}, {}, names[:-2], names[-2:]])


def test_gcnet_six_classes(tmp_path):
    labels = {
        f"Ses0{s}F_{part}0{i}": [0, 1, 2, 3, 4, 5] for s in (1, 2) for part in ("impro", "script01_") for i in (1, 2)
    }
    data = load(gcnet(tmp_path, labels))
    assert (data.kind, data.classes, len(data.splits["test"])) == ("classes", 6, 12)
    train_two_steps(data)


def test_improvised_and_scripted_dialogues_are_scored_apart(tmp_path):
    names = [f"Ses0{s}{part}" for s in (1, 2) for part in ("F_impro01", "M_script01_1")]
    data = load(gcnet(tmp_path, {name: [0, 1, 2, 3] for name in names}))
    split = data.splits["test"]
    assert split.parts["impro"].tolist() == ["impro" in i for i in split.id]
    assert split.parts["script"].tolist() == ["script" in i for i in split.id]
    model, key = EBMC(Spec.of(data), Settings(dim=8)), SplitView.of(split, Spec.of(data), torch.device("cpu"))
    said = predict(model, key).outputs.argmax(-1)
    scores = by_condition(model, key, split.parts)["text+audio"]
    for part, rows in split.parts.items():
        assert scores[f"acc_{part}"] == pytest.approx(100 * (said == split.target)[rows].float().mean().item())
    assert not load(gcnet(tmp_path / "other", {f"Ses0{i}F_impro": [0, 1] for i in range(5)})).splits["test"].parts


# bc-LSTM


def bclstm(root, *, videos=8, shift=0, folders=("text", "audio", "video")):
    rng = np.random.default_rng(0)
    names = [f"vid_{v}_{clip}" for v in range(videos) for clip in (1, 2, 3)]
    root.mkdir(exist_ok=True)
    (root / "transcripts.csv").write_text("".join(f'{name},"so, it was ""good""",1\n' for name in names))
    rows = {"train": list(range(len(names) - 6))[::-1], "test": list(range(len(names) - 6, len(names)))}
    for split, chosen in rows.items():
        (root / f"text_{split}.csv").write_text("".join(f"{row},so it was good,1\n" for row in chosen))
        y = np.array([row % 2 + shift for row in chosen])
        for folder in folders:
            (root / folder).mkdir(exist_ok=True)
            table = np.column_stack([rng.normal(size=(len(chosen), 3)), y])
            table[0, 0] = -np.inf if folder == "audio" else 0
            np.savetxt(root / folder / f"{folder}_{split}0.csv", table, delimiter=",")
    return root


def test_bclstm(tmp_path):
    data = load(bclstm(tmp_path / "mosi"))
    assert (data.name, data.kind, data.classes, data.modalities) == (
        "mosi",
        "classes",
        2,
        ["text", "audio", "vision"],
    )
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 15, "valid": 3, "test": 6}
    assert not {*data.splits["train"].group} & {*data.splits["valid"].group}
    train = data.splits["train"]
    assert train.id[:2] == ["vid_5_3", "vid_5_2"]
    assert train.target[:2].tolist() == [1, 0]
    assert train.features["audio"][0, 0] == 0
    train_two_steps(data)


def test_bclstm_errors(tmp_path):
    root = bclstm(tmp_path)
    file = root / "audio/audio_test0.csv"
    lines = file.read_text().splitlines()
    for content, message in [
        (
            "\n".join(lines[1:]),
            r"audio_test0\.csv: has 5 rows of 4 numbers, expected 6 as in text_test\.csv, feat.*use",
        ),
        ("\n".join(reversed(lines)), r"its labels, in the last column, differ from those of the other.*use"),
        ("", r"audio_test0\.csv: has 0 rows"),
        ("a,b\n", r"audio_test0\.csv: cannot be read .*expected a CSV file of numbers without a header; download"),
        ("1,2\n3\n", r"audio_test0\.csv: cannot be read"),
        ("\n".join(["nan" + line[line.index(",") :] for line in lines]), r"NaN in 6 of 6 rows \(first: vid_6_1\)"),
    ]:
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            load(root)
    (root / "text_test.csv").write_text("99,words\n")
    with pytest.raises(
        DataError, match=r"text_test\.csv: column 0 holds 99, expected rows of transcripts\.csv, 0 to 23"
    ):
        load(root)
    (root / "text_test.csv").unlink()
    with pytest.raises(DataError, match=r"text_test\.csv: cannot be read .*expected a CSV file; download it again"):
        load(root)
    with pytest.raises(DataError, match=r"labels of train are not all 0 or 1, expected 0 or 1 last; recode"):
        load(bclstm(tmp_path / "other", shift=1))
    with pytest.raises(DataError, match=r"no features, expected text/text_train0\.csv and the like.*add them"):
        load(bclstm(tmp_path / "bare", folders=()))

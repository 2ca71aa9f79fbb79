"""What a conversation is and in which order, from every layout that tells; and what is refused where none does."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ebmc_msa.data import DataError, LabelOptions, load
from ebmc_msa.data.batch import Spec, class_weights
from ebmc_msa.data.check import check_conversations, context_of
from ebmc_msa.data.convert import convert
from ebmc_msa.data.validation_split import units

MELD = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")


def npz(path, n=60, drop=(), **changes):
    """Conversations of five utterances, rows of all of them mixed; two speakers take turns."""
    rng = np.random.default_rng(0)
    mix = rng.permutation(n)
    y = rng.integers(0, 3, n)
    fields = {
        "x_text": rng.normal(size=(n, 4)).astype(np.float32),
        "x_audio": rng.normal(size=(n, 3)).astype(np.float32),
        "y": y,
        "split": mix // 5 % 3,
        "id": [f"u{i}" for i in mix],
        "conversation": [f"talk{i // 5}" for i in mix],
        "order": mix % 5 * 1.5,
        "speaker": np.where(mix % 2, "ann", "bob"),
    }
    np.savez(path, **{k: v for k, v in (fields | changes).items() if k not in drop})
    return path


def test_npz_tells_conversation_order_and_speaker(tmp_path):
    data = load(npz(tmp_path / "data.npz"))
    assert data.conversational
    assert context_of(data, "auto") == "gru"
    for split in data.splits.values():
        for rows in split.conversation.apart():
            numbers = [int(split.id[row][1:]) for row in rows]
            assert numbers == list(range(numbers[0], numbers[0] + 5))
            voices = split.conversation.speaker[rows]
            assert (voices[2:] == voices[:-2]).all()
            assert (voices[1:] != voices[:-1]).all()


@pytest.mark.parametrize(
    ("drop", "lacks"),
    [
        (("order",), "order"),
        (("conversation",), "conversation"),
        (("conversation", "order"), "conversation and order"),
        (("order", "speaker"), "order"),
    ],
)
def test_conversation_and_order_come_together(tmp_path, drop, lacks):
    with pytest.raises(DataError, match=f"without {lacks}, expected conversation and order together; add {lacks}"):
        load(npz(tmp_path / "data.npz", drop=drop))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (np.zeros(60), "has two utterances at 0 in its order"),
        (np.full(60, np.nan), "order holds NaN"),
        (np.array(["a"] * 60), "order has shape"),
    ],
    ids=["ties", "NaN", "words"],
)
def test_an_order_that_orders_nothing_is_refused(tmp_path, order, message):
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path / "data.npz", order=order))


def test_rows_of_no_conversation_are_one_each(tmp_path):
    names = np.array([f"talk{i // 5}" for i in range(60)])
    names[:20] = ""
    data = load(npz(tmp_path / "data.npz", conversation=names, order=np.arange(60), split=np.arange(60) // 20))
    assert len(data.splits["train"].conversation.apart()) == 20
    assert len(data.splits["valid"].conversation.apart()) == 4
    check_conversations("--context gru", data)


@pytest.mark.parametrize("name", ["", np.nan])
def test_who_is_not_known_is_nobody_else(tmp_path, name):
    """An empty cell, or what a table of numbers has there, names no conversation and no speaker."""
    kind = str if name == "" else float
    talks, speakers = (np.array([i // 5 for i in range(60)]).astype(kind), (np.arange(60) % 2).astype(kind))
    talks[:20], speakers[20:24] = name, name
    order = np.where(np.arange(60) < 20, np.nan, np.arange(60))
    data = load(npz(tmp_path / "d.npz", conversation=talks, speaker=speakers, order=order, split=np.arange(60) // 20))
    train, valid = (data.splits[split].conversation for split in ("train", "valid"))
    assert len(train.apart()) == 20
    assert len(valid.apart()) == 4
    assert len(set(valid.speaker[:4].tolist())) == 4
    assert len(set(valid.speaker[4:].tolist())) == 2


@pytest.mark.parametrize(("labels", "noted"), [("sorted", True), ("one each", True), ("mixed", False)])
def test_labels_that_follow_the_rows_are_noted(tmp_path, labels, noted):
    talks, place = np.arange(240) // 20, np.arange(240) % 20
    y = {"sorted": place // 7, "one each": talks % 3, "mixed": np.random.default_rng(0).integers(0, 3, 240)}[labels]
    fields = {"conversation": talks, "order": place, "y": y, "split": talks % 3, "speaker": place % 2}
    note = load(npz(tmp_path / "d.npz", n=240, **fields)).note
    assert ("rows were sorted by label" in note) == noted


def test_a_conversation_in_two_splits_is_refused_with_context_only(tmp_path):
    data = load(npz(tmp_path / "data.npz", split=np.arange(60) % 3))
    assert context_of(data, "none") == "none"
    with pytest.raises(DataError, match=r"lies in .* and in .*expected whole conversations in each split"):
        context_of(data, "auto")


def test_without_conversations_auto_reads_none_and_others_are_refused(tmp_path):
    data = load(npz(tmp_path / "data.npz", drop=("conversation", "order", "speaker"), group=np.arange(60) // 5))
    assert context_of(data, "auto") == "none"
    with pytest.raises(DataError, match=r"expected the fields conversation and order .a group is only"):
        context_of(data, "gru")
    with pytest.raises(DataError, match=r"--causal: .*expected a context; pass --context gru"):
        context_of(data, "auto", causal=True)


@pytest.mark.data
@pytest.mark.skipif("MODBALANCE_DATA" not in os.environ, reason="needs the real sets")
def test_actors_are_no_conversation_and_their_rows_are_sorted():
    path = Path(os.environ["MODBALANCE_DATA"], "ravdess", "ravdess.npz")
    data = load(path)
    assert data.splits["train"].group is not None
    assert context_of(data, "auto") == "none"
    with pytest.raises(DataError, match="expected the fields conversation and order"):
        context_of(data, "gru")


@pytest.mark.data
@pytest.mark.skipif("MODBALANCE_DATA" not in os.environ, reason="needs the real sets")
def test_rows_sorted_by_label_are_noted(tmp_path):
    path = Path(os.environ["MODBALANCE_DATA"], "ravdess", "ravdess.npz")
    with np.load(path) as file:
        fields = dict(file)
    fields |= {"conversation": fields["group"], "order": np.arange(len(fields["group"]))}
    np.savez(tmp_path / "sorted.npz", **fields)
    assert "rows were sorted by label" in load(tmp_path / "sorted.npz").note
    fields["order"] = np.random.default_rng(0).permutation(len(fields["group"]))
    np.savez(tmp_path / "mixed.npz", **fields)
    assert "sorted" not in load(tmp_path / "mixed.npz").note
    real = load(Path(os.environ["MODBALANCE_DATA"], "iemocap"))
    assert real.conversational
    assert "sorted" not in real.note


@pytest.mark.data
@pytest.mark.skipif("MODBALANCE_DATA" not in os.environ, reason="needs the real sets")
def test_mmsa_has_an_order_by_clip_and_no_context_unless_asked():
    data = load(Path(os.environ["MODBALANCE_DATA"], "mosi"))
    assert context_of(data, "auto") == "none"
    assert context_of(data, "gru") == "gru"
    split = data.splits["train"]
    for rows in split.conversation.apart():
        videos, clips = zip(*(split.id[row].split("$_$") for row in rows), strict=True)
        assert len(set(videos)) == 1
        assert [int(clip) for clip in clips] == sorted(map(int, clips))


def test_convert_keeps_them(tmp_path):
    source = npz(tmp_path / "data.npz")
    convert(source, tmp_path / "folder")
    read, written = load(tmp_path / "folder"), load(source)
    assert read.conversational
    for name, split in written.splits.items():
        assert all(map(torch.equal, read.splits[name].conversation, split.conversation))


BY_TEN = {
    "conversation": np.arange(60) // 10,
    "order": np.arange(60),
    "split": np.where(np.arange(60) < 50, 0, 2),
}


@pytest.mark.parametrize("group", [None, np.arange(60) // 3, np.arange(60) // 30])
def test_a_validation_split_cuts_no_conversation(tmp_path, group):
    data = load(npz(tmp_path / "data.npz", **BY_TEN, **({} if group is None else {"group": group})))
    check_conversations("--context gru", data)
    assert len(data.splits["valid"])


def test_two_speakers_of_every_conversation_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="has 1 group"):
        load(npz(tmp_path / "data.npz", **BY_TEN, group=np.arange(60) % 2))


def test_units_join_groups_that_share_a_conversation(tmp_path):
    split = load(npz(tmp_path / "data.npz")).splits["train"]
    talks = split.conversation.id.tolist()
    found = units(split)
    assert len(set(found)) == len(set(talks)) == len(set(zip(found, talks, strict=True)))
    assert set(units(replace(split, group=["one"] * len(talks)))) == {"one"}


def erc(path, *, kind="meld", form=tuple, **changes):
    """A pickle as DialogueRNN wrote it; returns its path and entries."""
    rng = np.random.default_rng(0)
    lengths = {0: 3, 1: 1, 2: 4, 3: 2, 4: 5, 5: 3, 6: 2}
    if kind == "iemocap":
        lengths = {f"Ses0{1 + k}F_impro0{k}": n for k, n in lengths.items()}
    keys = list(lengths)
    entries = {
        "ids": {k: [f"{k}_F{i:03}" if kind == "iemocap" else i for i in range(n)] for k, n in lengths.items()},
        "speakers": {
            k: ["MF"[i % 2] for i in range(n)]
            if kind == "iemocap"
            else [[float(i % 2 == s) for s in range(9)] for i in range(n)]
            for k, n in lengths.items()
        },
        "labels": {k: [(i + j) % 7 for j in range(n)] for i, (k, n) in enumerate(lengths.items())},
        "text": {k: rng.normal(size=(n, 6)) for k, n in lengths.items()},
        "audio": {k: list(rng.normal(size=(n, 4)).astype(np.float32)) for k, n in lengths.items()},
        "sentences": {k: [f"so {i}" for i in range(n)] for k, n in lengths.items()},
        "train": keys[:5],
        "test": keys[5:],
        "sentiments": {k: [(i + j) % 3 for j in range(n)] for i, (k, n) in enumerate(lengths.items())},
    }
    if kind == "iemocap":
        del entries["sentiments"]
        entries["labels"] = {k: [label % 6 for label in row] for k, row in entries["labels"].items()}
        entries["train"], entries["test"] = set(entries["train"]), set(entries["test"])
        vision = {"vision": {k: rng.normal(size=(n, 5)) for k, n in lengths.items()}}
        at = list(entries).index("sentences")
        entries = dict([*list(entries.items())[:at], *vision.items(), *list(entries.items())[at:]])
    entries = {k: v for k, v in (entries | changes).items() if v is not None}
    path.write_bytes(pickle.dumps(form(entries.values())))
    return path, entries


def test_meld_with_seven_emotions(tmp_path):
    path, entries = erc(tmp_path / "MELD_features_raw.pkl")
    data = load(path)
    assert (data.kind, data.classes, data.labels) == ("classes", 7, MELD)
    assert data.modalities == ["text", "audio"]
    assert context_of(data, "auto") == "gru"
    assert "no validation split" in data.note
    for split in data.splits.values():
        for row, name in enumerate(split.id):
            video, i = (int(part) for part in name.split("_"))
            assert split.target[row] == entries["labels"][video][i]
            np.testing.assert_allclose(split.features["text"][row], entries["text"][video][i], rtol=1e-6)
            assert split.group[row] == str(video)
        for rows in split.conversation.apart():
            voices = split.conversation.speaker[rows]
            assert (voices[1:] != voices[:-1]).all()


def test_meld_with_three_sentiments(tmp_path):
    path, entries = erc(tmp_path / "MELD_features_raw.pkl")
    data = load(path, options=LabelOptions(labels="sentiment"))
    assert (data.classes, data.labels) == (3, ("neutral", "positive", "negative"))
    split = data.splits["test"]
    assert split.target.tolist() == [label for video in (5, 6) for label in entries["sentiments"][video]]
    path, _ = erc(tmp_path / "IEMOCAP_features.pkl", kind="iemocap")
    with pytest.raises(DataError, match=r"--labels: sentiment, but .* holds emotions; pass one of emotions"):
        load(path, options=LabelOptions(labels="sentiment"))


def test_iemocap_with_vision_and_sets_of_conversations(tmp_path):
    path, _ = erc(tmp_path / "IEMOCAP_features.pkl", kind="iemocap", form=list)
    data = load(path)
    assert data.modalities == ["text", "audio", "vision"]
    assert data.labels == ("happy", "sad", "neutral", "angry", "excited", "frustrated")
    assert all(split.conversation.speaker is not None for split in data.splits.values())


def test_four_layers_of_text_are_averaged_and_three_splits_are_train_test_valid(tmp_path):
    path, entries = erc(tmp_path / "meld.pkl")
    more = {f"text{i}": {k: x + i for k, x in entries["text"].items()} for i in (1, 2, 3)}
    names = list(entries)
    order = [*names[: names.index("audio")], *more, *names[names.index("audio") :]]
    entries |= more | {"test": [6]}
    values = [entries[name] for name in order]
    values.insert(order.index("test") + 1, [5])
    path.write_bytes(pickle.dumps(tuple(values)))
    data = load(path)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 15, "valid": 3, "test": 2}
    row = data.splits["test"].id.index("6_1")
    np.testing.assert_allclose(data.splits["test"].features["text"][row], entries["text"][6][1] + 1.5, rtol=1e-5)
    assert "mean of four layers" in data.note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [0, 1, 99]}, "split 'train' names 99, expected conversations of the first entry"),
        ({"audio": {0: np.zeros((3, 4))}}, "has 0 features for 1 utterances"),
        (
            {"labels": {k: [0.5] * n for k, n in zip(range(7), (3, 1, 4, 2, 5, 3, 2), strict=True)}},
            "expected classes 0, 1, …",
        ),
        ({"audio": None, "text": {k: np.zeros((1, 1)) for k in range(7)}}, "expected an MMSA or MulT pickle"),
        (
            {"labels": {k: np.zeros((n, 5)) for k, n in zip(range(7), (3, 1, 4, 2, 5, 3, 2), strict=True)}},
            "features in the place of labels, .* put a dict of the utterances' ids first",
        ),
    ],
)
def test_what_is_wrong_with_such_a_pickle_is_said(tmp_path, changes, message):
    path, _ = erc(tmp_path / "meld.pkl", **changes)
    with pytest.raises(DataError, match=message):
        load(path)


def test_class_weights_are_those_of_scikit_learn(tmp_path):
    from sklearn.utils.class_weight import compute_class_weight

    y = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y.numpy())
    np.testing.assert_allclose(class_weights(y, 3), expected, rtol=1e-6)
    assert class_weights(y, 4)[3] == 1.0
    spec = Spec.of(load(npz(tmp_path / "data.npz")), balanced=True)
    assert len(spec.class_weight) == 3
    assert Spec.from_dict(spec.as_dict()) == spec

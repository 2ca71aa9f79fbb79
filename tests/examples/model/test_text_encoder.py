"""A tiny BERT with random weights, saved by the test and fine-tuned with everything else."""

import json
import pickle

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="fine-tuning text needs transformers: modbalance[bert]")

from ebmc_msa.data import DataError, load  # noqa: E402
from ebmc_msa.data.tokens import describe, tokenised  # noqa: E402
from ebmc_msa.model.concat import Concat  # noqa: E402
from ebmc_msa.model.text_encoder import TextEncoder, parameter_groups  # noqa: E402
from ebmc_msa.training import command  # noqa: E402

SHORT = ["--stage1-epochs", "1", "--stage2-epochs", "1", "--device", "cpu", "--batch-size", "8"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "the", "was", "a", "very", "[MASK]"]
SAID = ["the film was good", "bad", "a very very bad film", "good good"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def mmsa(tmp_path):
    """A file of utterances with sound, and either their words or their tokens."""

    def write(**changes):
        rng, splits = np.random.default_rng(0), {}
        for split, n in (("train", 16), ("valid", 8), ("test", 8)):
            words = [SAID[i % 4] for i in range(n)]
            splits[split] = {
                "raw_text": np.array(words),
                "id": [f"v{i}$_${i}" for i in range(n)],
                "audio": rng.normal(size=(n, 1, 5)).astype("float32"),
                "regression_labels": np.array([1 if "good" in w else -1.5 for w in words], "float32"),
            }
            splits[split] |= {name: make(n) for name, make in changes.items()}
            splits[split] = {name: value for name, value in splits[split].items() if value is not None}
        path = tmp_path / "mmsa.pkl"
        path.write_bytes(pickle.dumps(splits))
        return path

    return write


def tokens(n):
    """`good film` and `bad` in turn, as MMSA stores them."""
    rows = [[2, 4, 6, 3, 0], [2, 5, 3, 9, 9]]
    mask = [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    return np.array([[rows[i % 2], mask[i % 2], [0] * 5] for i in range(n)], np.int64)


def test_words_become_the_ids_of_the_tokenizer(bert, mmsa):
    split = tokenised(load(mmsa()), describe(bert)).splits["train"]
    expected = transformers.AutoTokenizer.from_pretrained(bert)(SAID, padding=True, return_tensors="pt")
    assert torch.equal(split.features["text"][:4, :, 0], expected.input_ids)
    assert torch.equal(split.lengths["text"][:4], expected.attention_mask.sum(1))
    assert list(split.features) == ["text", "audio"]


def test_text_bert_is_read_where_words_are_not(bert, mmsa):
    path = mmsa(raw_text=lambda n: None, text_bert=tokens)
    split = tokenised(load(path), describe(bert)).splits["valid"]
    assert split.lengths["text"].tolist() == [4, 3] * 4
    assert split.features["text"][1, :3, 0].tolist() == [2, 5, 3]


def test_no_word_is_no_text_and_long_ones_are_cut(bert, mmsa):
    said = ["", " ", "good " * 99, "bad"]
    split = tokenised(load(mmsa(raw_text=lambda n: said * (n // 4))), describe(bert)).splits["train"]
    assert split.present["text"].tolist() == [False, False, True, True] * 4
    assert split.lengths["text"][:4].tolist() == [0, 0, 16, 3]


def test_the_encoder_pools_the_states_of_the_folder_over_valid_tokens(bert):
    encoder = TextEncoder(describe(bert), 6, dropout=0.0).eval()
    encoder.load(bert)
    reference = transformers.AutoModel.from_pretrained(bert).eval()
    ids = torch.tensor([[2, 4, 6, 3], [2, 5, 3, 10]])
    lengths = torch.tensor([4, 3])
    with torch.no_grad():
        got = encoder(ids[..., None], lengths)
        for row, length, out in zip(ids, lengths, got, strict=True):
            state = reference(input_ids=row[None, :length]).last_hidden_state.mean(1)
            torch.testing.assert_close(encoder.body(state)[0], out, rtol=1e-4, atol=1e-5)


def test_an_empty_utterance_gives_a_number_and_no_gradient(bert):
    encoder = TextEncoder(describe(bert), 6, dropout=0.0)
    out = encoder(torch.full((1, 2, 1), 7), torch.tensor([0]))
    assert torch.isfinite(out).all()
    out.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in encoder.bert.parameters())


def test_the_bert_has_its_own_learning_rate(bert, mmsa):
    from ebmc_msa.data.batch import Spec
    from ebmc_msa.model.settings import Settings

    model = Concat(Spec.of(tokenised(load(mmsa()), describe(bert))), Settings())
    rest, text = parameter_groups(model, 3e-5)
    assert text["lr"] == 3e-5
    assert {id(p) for p in text["params"]} == {id(p) for p in model.encoders["text"].bert.parameters()}
    assert len(rest["params"]) + len(text["params"]) == len(list(model.parameters()))


def test_with_context_it_reads_weights_and_learns_too(bert, mmsa):
    from dataclasses import replace

    from ebmc_msa.data.conversation import Conversation
    from ebmc_msa.data.split import SplitView
    from ebmc_msa.model.prediction import spec_of
    from ebmc_msa.model.settings import Settings

    data = tokenised(load(mmsa()), describe(bert))
    splits = {
        name: replace(split, conversation=Conversation(torch.arange(len(split)) // 3, torch.arange(len(split))))
        for name, split in data.splits.items()
    }
    settings = Settings(context="gru", dim=8)
    model = Concat(spec_of(replace(data, splits=splits), settings), settings)
    model.encoders["text"].load(bert)
    weight = model.encoders["text"].encoder.bert.embeddings.word_embeddings.weight
    start = transformers.AutoModel.from_pretrained(bert).embeddings.word_embeddings.weight
    torch.testing.assert_close(weight, start)
    name = SplitView.of(splits["train"], model.spec, torch.device("cpu"))
    model(name.rows(torch.arange(len(name)))).loss.backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("source", ["raw_text", "text_bert"])
def test_trains_and_is_evaluated_without_the_folder(bert, mmsa, tmp_path, monkeypatch, source):
    monkeypatch.setattr("ebmc_msa.training.run.write_report", lambda *_: None)
    path = mmsa() if source == "raw_text" else mmsa(raw_text=lambda n: None, text_bert=tokens)
    folder, out = tmp_path / "moved", tmp_path / "runs"
    bert_here = bert.rename(folder)
    try:
        wanted = ["--data", path, "--out", out, "--name", "a", "--compare", "--seeds", 1, "--text-lr", 1e-2, *SHORT]
        assert command.main([*map(str, wanted), "--finetune-text", str(bert_here)]) == 0
        state = torch.load(out / "a/text-1.pt", weights_only=True)["state"]
        start = transformers.AutoModel.from_pretrained(bert_here).embeddings.word_embeddings.weight
        assert not torch.allclose(state["encoders.text.bert.embeddings.word_embeddings.weight"], start, atol=1e-3)
    finally:
        folder.rename(bert)
    assert command.main(["--evaluate", str(out / "a"), "--data", str(path), "--device", "cpu"]) == 0
    missing = ["--evaluate", str(out / "a"), "--data", str(path), "--device", "cpu", "--missing"]
    protocols = ("frames", "noise") if source == "raw_text" else ()
    assert [command.main([*missing, protocol]) for protocol in protocols] == [0 for _ in protocols]
    before = json.loads((out / "a/metrics.json").read_text())["models"]
    after = json.loads((out / "a/evaluation.json").read_text())["models"]
    assert {name: found["test"] for name, found in before.items()} == {n: f["test"] for n, f in after.items()}


@pytest.mark.parametrize("fault", ["nowhere", "empty", "no weights", "broken weights", "no tokenizer"])
def test_folders_that_hold_no_bert(bert, mmsa, tmp_path, capsys, fault):
    import shutil

    folder = tmp_path / "model"
    if fault != "nowhere":
        shutil.copytree(bert, folder)
        weights = folder / "model.safetensors"
        {
            "empty": lambda: [file.unlink() for file in folder.iterdir()],
            "no weights": weights.unlink,
            "broken weights": lambda: weights.write_bytes(b"no tensors"),
            "no tokenizer": lambda: [f.unlink() for f in folder.iterdir() if f.name[0] in "tv"],
        }[fault]()
    wanted = ["--data", mmsa(), "--out", tmp_path / "runs", "--finetune-text", folder, *SHORT]
    assert command.main(list(map(str, wanted))) == 2
    error = capsys.readouterr().err
    assert f"--finetune-text: {folder}" in error
    assert error.count("\n") == 1
    assert not any((tmp_path / "runs").glob("*"))


def test_data_without_words(bert, tmp_path, capsys):
    assert command.main(["--out", str(tmp_path / "runs"), "--finetune-text", str(bert), *SHORT]) == 2
    assert "has neither raw_text nor text_bert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda x: x.__setitem__((0, 0, 1), 99), "ids from 2 to 99, expected 0 to 11"),
        (lambda x: x.__setitem__((0, 2, 1), 1), "more than one segment"),
    ],
)
def test_tokens_of_another_model(bert, mmsa, corrupt, message):
    def spoilt(n):
        x = tokens(n)
        corrupt(x)
        return x

    dataset = load(mmsa(raw_text=lambda n: None, text_bert=spoilt))
    with pytest.raises(DataError, match=message):
        tokenised(dataset, describe(bert))


def test_without_transformers(bert, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(DataError, match=r"transformers is not installed.*pip install 'modbalance\[bert\]'"):
        describe(bert)

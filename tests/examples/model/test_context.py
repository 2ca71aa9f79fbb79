"""Context: from the same modality, the same conversation, and nothing that is absent or, if causal, yet to come."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmc_msa.data import Dataset, Split
from ebmc_msa.data.conversation import Conversation
from ebmc_msa.data.split import SplitView, by_length, shuffled
from ebmc_msa.evaluation.predict import predict
from ebmc_msa.evaluation.scores import by_condition
from ebmc_msa.experiments.stacking import fit_stacking
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.context import ContextEncoder, windows
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.encoders import encode
from ebmc_msa.model.prediction import spec_of
from ebmc_msa.model.settings import Settings
from ebmc_msa.training.stages import train
from modbalance import Teacher

CPU = torch.device("cpu")
KINDS = ("gru", "transformer")
SMALL = {"dim": 8, "stage1_epochs": 1, "stage2_epochs": 1, "batch_size": 16}


def conversations(lengths, speakers=True):
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    order = torch.cat([torch.arange(n) for n in lengths])
    return Conversation(ids, order, torch.arange(len(ids)) % 3 // 2 if speakers else None)


def talk(lengths=(1, 7, 12, 3), seed=0):
    """A split of conversations; audio is missing in one of five utterances."""
    generator, n = torch.Generator().manual_seed(seed), sum(lengths)
    present = {"text": torch.ones(n, dtype=torch.bool), "audio": torch.arange(n) % 5 != 1}
    features = {
        name: torch.randn(n, size, generator=generator) * present[name][:, None]
        for name, size in (("text", 6), ("audio", 4))
    }
    target = features["text"][:, :3].argmax(-1)
    return Split(features, {}, present, target, [str(i) for i in range(n)], conversation=conversations(lengths))


def dataset(**splits):
    parts = {"train": (5, 9, 4, 11), "valid": (6, 4), "test": (1, 7, 12, 3)}
    made = {split: talk(lengths, seed) for seed, (split, lengths) in enumerate(parts.items())}
    return Dataset("talk", "classes", 3, made | splits, conversational=True)


def trained(kind="gru", model=EBMC, **changes):
    """What training for an epoch of each stage gives, and the splits."""
    data, settings = dataset(), Settings(context=kind, **(SMALL | changes))
    spec = spec_of(data, settings)
    torch.manual_seed(0)
    network = model(spec, settings)
    splits = {name: SplitView.of(split, spec, CPU) for name, split in data.splits.items()}
    return train(network, splits["train"], splits["valid"], settings, 0, lambda *_: None), splits


def contexts(model):
    """All its context encoders, those of frozen copies too."""
    for module in model.modules():
        if isinstance(module, ContextEncoder):
            yield module
        elif isinstance(module, Teacher):
            yield from contexts(module.copy)


def encoder(kind, **options):
    torch.manual_seed(1)
    made = ContextEncoder(8, kind, speakers=True, **options).double().eval()
    if kind == "transformer":
        torch.nn.init.normal_(made.reader.same)
    return made


def changed(split, rows, names=("text", "audio")):
    """The split with other features in some rows."""
    noise = {name: torch.zeros_like(x) for name, x in split.features.items()}
    for name in names:
        noise[name][rows] = 3.0
    return replace(split, features={name: x + noise[name] for name, x in split.features.items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_an_absent_utterance_is_as_if_the_conversation_lacked_it(kind, causal):
    read, talked = encoder(kind, causal=causal, window=8), conversations([3, 30, 1, 12])
    z, here = torch.randn(46, 8).double(), torch.arange(46) % 4 != 2
    there = here.nonzero()[:, 0]
    whole = read(z, talked, here)
    lacking = read(z[there], talked.rows(there), torch.ones(len(there), dtype=torch.bool))
    torch.testing.assert_close(whole[there], lacking)
    assert not whole[~here].any()
    nothing_absent = read(z, talked, torch.ones_like(here))
    assert not torch.allclose(nothing_absent[there], lacking)  # it does read the others


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[1], [110], [1, 110, 1]])
def test_conversations_of_one_and_of_many(kind, lengths):
    read, talked = encoder(kind), conversations(lengths)
    z = torch.randn(sum(lengths), 8).double()
    assert torch.isfinite(read(z, talked, torch.ones(len(z), dtype=torch.bool))).all()
    assert not read(z, talked, torch.zeros(len(z), dtype=torch.bool)).any()
    assert read(z[:0], talked.rows(slice(0)), torch.ones(0, dtype=torch.bool)).shape == (0, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_any_order_and_other_names_give_the_same(kind):
    read, talked, shuffle = encoder(kind, window=8), conversations([9, 1, 20]), torch.randperm(30)
    z, here = torch.randn(30, 8).double(), torch.arange(30) % 7 != 3
    found = read(z, talked, here)
    renamed = talked._replace(id=7 - 3 * talked.id, order=5 * talked.order - 40, speaker=9 - talked.speaker)
    torch.testing.assert_close(read(z[shuffle], renamed.rows(shuffle), here[shuffle]), found[shuffle])


@pytest.mark.parametrize("kind", KINDS)
def test_speakers_count_by_change_only(kind):
    read, talked, z = encoder(kind), conversations([10]), torch.randn(10, 8).double()
    here = torch.ones(10, dtype=torch.bool)
    alone = talked._replace(speaker=torch.zeros(10, dtype=torch.int64))
    assert not torch.allclose(read(z, talked, here), read(z, alone, here))
    torch.testing.assert_close(read(z, alone._replace(speaker=alone.speaker + 4), here), read(z, alone, here))


@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_context_is_that_of_the_prefix(kind):
    read, z = encoder(kind, causal=True, window=8), torch.randn(37, 8).double()
    whole = read(z, conversations([37]), torch.ones(37, dtype=torch.bool))
    for n in (1, 7, 8, 9, 12, 13, 30):
        prefix = read(z[:n], conversations([37]).rows(slice(n)), torch.ones(n, dtype=torch.bool))
        torch.testing.assert_close(whole[:n], prefix)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([2, 4, 6, 10]), st.booleans())
def test_windows_read_each_row_once_where_it_has_context(lengths, size, causal):
    ids = conversations(lengths).id
    plan = windows(ids, size, causal)
    assert torch.equal(plan.index.flatten()[plan.own], torch.arange(len(ids)))
    before = plan.own % plan.index.shape[1]
    assert (before < plan.size[plan.own // plan.index.shape[1]]).all()
    after = plan.size[plan.own // plan.index.shape[1]] - 1 - before
    at = torch.cat([torch.arange(n) for n in lengths])
    left = torch.cat([n - 1 - torch.arange(n) for n in lengths])
    if causal:
        assert (before >= at.clamp(max=size // 2)).all()
    else:
        assert (before >= at.clamp(max=size // 4)).all()
        assert (after >= left.clamp(max=size // 4)).all()
    for row, length in zip(plan.index, plan.size.tolist(), strict=True):
        assert len(ids[row[:length]].unique()) == 1


def test_a_gru_reads_each_conversation_forwards_and_backwards():
    read, talked, z = encoder("gru"), conversations([4, 9]), torch.randn(13, 8).double()
    found = read(z, talked, torch.ones(13, dtype=torch.bool))
    for rows in (slice(0, 4), slice(4, 13)):
        states = []
        for way in (0.0, 1.0):
            order = torch.arange(13)[rows].flip(0) if way else torch.arange(13)[rows]
            speaker = talked.speaker[order]
            same = torch.cat([torch.zeros(1).bool(), speaker[1:] == speaker[:-1]]).double()
            inputs = torch.cat([z[order], same[:, None], torch.full((len(order), 1), way)], -1)
            out = read.reader.gru(inputs[None])[0][0]
            states.append(out.flip(0) if way else out)
        update = torch.cat(states, -1) @ read.out.weight.T + read.out.bias
        torch.testing.assert_close(found[rows], z[rows] + update)


@pytest.mark.parametrize("model", [EBMC, Concat])
@pytest.mark.parametrize("kind", KINDS)
def test_no_conversation_reads_another(model, kind):
    out, splits = trained(kind, model)
    network = out.model
    ids = splits["test"].conversation.id
    before = predict(network, splits["test"])
    after = predict(network, changed(splits["test"], ids == 2))
    assert torch.equal(before.outputs[ids != 2], after.outputs[ids != 2])
    assert not torch.equal(before.outputs[ids == 2], after.outputs[ids == 2])
    # but within one an utterance reads the others
    last = changed(splits["test"], torch.tensor([19]))
    assert (before.outputs[8:19] != predict(network, last).outputs[8:19]).any(1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("model", "count"), [(EBMC, 4), (Concat, 2)])
@pytest.mark.parametrize("impute", [False, True])
def test_causal_predictions_do_not_know_the_future(kind, model, count, impute):
    out, splits = trained(kind, model, causal=True, impute_context=impute)
    network = out.model
    assert len(list(contexts(network))) == count  # of EBMC and of its teachers
    for context in contexts(network):
        context.window = 4
    test = splits["test"]
    before = predict(network, test).outputs
    later = test.conversation.order >= 5
    hidden = test.with_present({name: here & ~later for name, here in test.present.items()})
    for other in (changed(test, later), hidden):
        after = predict(network, other).outputs
        torch.testing.assert_close(before[~later], after[~later], rtol=0, atol=1e-6)
    assert not torch.equal(before[later], predict(network, changed(test, later)).outputs[later])


@pytest.mark.parametrize("model", [EBMC, Concat])
@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_without_a_modality_is_as_if_it_were_cut_out_there(model, kind):
    """Of the whole model: an utterance that lacks all modalities, beside a split without it."""
    out, splits = trained(kind, model)
    test, gone = splits["test"], torch.tensor([3, 9, 21])
    here = torch.ones(len(test), dtype=torch.bool).index_fill(0, gone, False)
    lacking = predict(out.model, test.with_present({name: p & here for name, p in test.present.items()}))
    without = predict(out.model, test.select(here))
    torch.testing.assert_close(lacking.outputs[here], without.outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", [EBMC, Concat])
def test_a_modality_reads_no_other_before_the_components(model):
    out, splits = trained(model=model)
    network = out.student.eval()
    batch = splits["test"].rows(torch.arange(23))
    other = changed(splits["test"], slice(None), ["audio"]).rows(torch.arange(23))
    hidden = batch.with_present(batch.present | {"audio": torch.zeros(23, dtype=torch.bool)})
    text = encode(network.encoders, batch)["text"]
    for one in (other, hidden):
        assert torch.equal(text, encode(network.encoders, one)["text"])
        if model is EBMC:
            assert torch.equal(network.teachers.predict("text", batch), network.teachers.predict("text", one))


def test_a_teacher_is_a_whole_unimodal_branch_with_its_context():
    out, splits = trained()
    predict_text = out.student.teachers.predict
    batch = splits["test"].rows(torch.arange(23))
    other = changed(splits["test"], torch.tensor([19]), ["text"]).rows(torch.arange(23))
    said, after = predict_text("text", batch), predict_text("text", other)
    assert torch.equal(said[:8], after[:8])
    assert (said[8:19] != after[8:19]).any(1).all()


def test_batches_hold_whole_conversations_of_about_the_size_asked_for():
    lengths = [30, 1, 2, 40, 7, 9, 12, 3, 110, 5, 6, 20, 21, 22]
    split = SplitView({}, torch.arange(sum(lengths)), {}, {"text": torch.ones(sum(lengths))}, None, CPU)
    split = replace(split, conversation=conversations(lengths))
    drawn = shuffled(split, 32, torch.Generator().manual_seed(0), window=2)
    for batches in (drawn, by_length(split, 32)):
        assert torch.equal(torch.cat(list(batches)).sort().values, torch.arange(sum(lengths)))
        owners = [set(split.conversation.id[rows].tolist()) for rows in batches]
        assert sum(map(len, owners)) == len(lengths)  # none in two batches
        ids = split.conversation.id
        last = [int((ids[rows] == ids[rows[-1]]).sum()) for rows in batches]
        assert all(len(rows) - n < 32 for rows, n in zip(batches, last, strict=True))  # full only with its last one
    assert sum(len(rows) < 32 for rows in by_length(split, 32)) <= 1
    assert len(drawn) <= 9
    again = shuffled(split, 32, torch.Generator().manual_seed(1), window=2)
    assert [rows.tolist() for rows in drawn] != [rows.tolist() for rows in again]


def test_the_shuffled_control_keeps_the_conversation_and_loses_its_order():
    data = dataset()
    split = data.splits["train"]
    spec = spec_of(data, Settings(context="gru", shuffled=True))
    name = SplitView.of(split, spec, CPU)
    assert spec.context == "shuffled"
    assert torch.equal(name.conversation.id, split.conversation.id)
    assert len(name.conversation.order.unique()) == len(split)
    drawn, ordered = (
        [split.conversation.order[rows].tolist() for rows in c.apart()]
        for c in (name.conversation, split.conversation)
    )
    assert drawn != ordered
    assert [sorted(rows) for rows in drawn] == ordered


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_and_stacking_work_with_it(kind):
    out, splits = trained(kind)
    found = by_condition(out.model, splits["test"])
    assert set(found) == {"text", "audio", "text+audio"}
    settings = Settings(context=kind, **SMALL)
    stacked = fit_stacking(out.model.spec, settings, splits["train"], splits["valid"], 0)
    assert predict(stacked, splits["test"]).outputs.shape == (23, 3)


@pytest.mark.parametrize("earlier", [False, True])
def test_the_nearest_utterance_against_a_loop(earlier):
    generator = torch.Generator().manual_seed(3)
    talks = conversations([1, 5, 9, 4, 1])
    mixed = talks.rows(torch.randperm(20, generator=generator))
    here = torch.rand(20, generator=generator) < 0.3
    source, exists = mixed.nearest(here, earlier=earlier)
    for row in range(20):
        distance = {
            other: (abs(mixed.order[other] - mixed.order[row]).item(), mixed.order[other].item())
            for other in range(20)
            if here[other] and mixed.id[other] == mixed.id[row]
            if not earlier or mixed.order[other] <= mixed.order[row]
        }
        assert exists[row] == bool(distance)
        if distance:
            assert source[row] == min(distance, key=distance.get)


@pytest.mark.parametrize("model", [EBMC, Concat])
def test_an_absent_modality_is_taken_from_the_nearest_utterance_only_where_asked(model):
    (plain, splits), (found, _) = (trained(model=model, impute_context=impute) for impute in (False, True))
    batch = splits["test"].rows(torch.arange(23))
    assert plain.model.spec.impute == "none"
    assert plain.model.imputed(batch) is batch
    alone = batch.present["audio"] & (batch.conversation.id != 0) & (batch.conversation.id != 3)
    batch = batch.with_present({**batch.present, "audio": alone})  # two conversations have no audio at all
    filled = found.model.imputed(batch)
    assert torch.equal(filled.present["audio"], (batch.conversation.id == 1) | (batch.conversation.id == 2))
    assert torch.equal(filled.features["text"], batch.features["text"])
    source, exists = batch.conversation.nearest(alone)
    audio = torch.where(exists[:, None], batch.features["audio"][source], torch.nan)
    features, present = {**batch.features, "audio": audio}, {**batch.present, "audio": exists}
    by_hand = replace(batch, features=features, present=present)
    network = found.model.eval()
    with torch.no_grad():
        out = network(batch).outputs
        assert torch.equal(out, network(by_hand).outputs)
        assert torch.allclose(out, network.answer(batch), atol=1e-6)

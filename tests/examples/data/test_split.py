"""SplitData read by rows: the right ones, each once, never all at a time."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmc_msa.data import synthetic
from ebmc_msa.data.batch import Spec
from ebmc_msa.data.split import SplitView, by_length, shuffled, total_frames
from ebmc_msa.evaluation.predict import predict
from ebmc_msa.model.concat import Concat
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.encoders import moments
from ebmc_msa.model.settings import Settings
from ebmc_msa.training.stages import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset():
    return synthetic(n=(96, 40, 8))


def split_of(dataset, name="train", **changes):
    return SplitView.of(replace(dataset.splits[name], **changes), Spec.of(dataset), CPU)


def lengths_only(*columns):
    """A split of which nothing but lengths matters."""
    lengths = {str(i): torch.tensor(column) for i, column in enumerate(columns)}
    return SplitView({}, torch.arange(len(columns[0])), lengths, {}, None, CPU)


def test_rows_are_those_of_the_split_cropped_to_the_longest(dataset):
    split, rows = dataset.splits["train"], torch.tensor([7, 3, 90])
    batch = split_of(dataset).rows(rows)
    for name, x in split.features.items():
        longest = int(split.lengths[name][rows].max())
        assert torch.equal(batch.features[name], x[rows][:, :longest])
        assert torch.equal(batch.lengths[name], split.lengths[name][rows])
        assert torch.equal(batch.present[name], split.present[name][rows])
    y = dataset.splits["train"].target
    torch.testing.assert_close(batch.target, (y[rows] - y.mean()) / y.std(correction=0))


def test_keep_and_showing_follow_the_rows(dataset):
    split, which = dataset.splits["train"], torch.arange(96) % 3 == 1
    kept = split_of(dataset).select(which)
    assert len(kept) == 32
    assert torch.equal(
        kept.rows(torch.tensor([4])).features["text"][0], split.features["text"][13, : split.lengths["text"][13]]
    )
    hidden = kept.with_present({name: torch.zeros_like(here) for name, here in kept.present.items()})
    assert not any(here.any() for here in hidden.rows(torch.arange(5)).present.values())


def test_float16_becomes_float32_by_the_batch(dataset):
    half = {name: x.half() for name, x in dataset.splits["train"].features.items()}
    batch = split_of(dataset, features=half).rows(torch.arange(4))
    assert all(x.dtype == torch.float32 for x in batch.features.values())


def test_a_modality_the_data_lack_is_absent(dataset):
    split = dataset.splits["train"]
    only = {"text": split.features["text"]}
    batch = split_of(dataset, features=only).rows(torch.arange(4))
    assert batch.features["audio"].shape == (4, 1, 12)
    assert not batch.present["audio"].any()
    assert (batch.lengths["audio"] == 0).all()


def test_a_split_of_nothing(dataset):
    split = split_of(dataset)
    nothing = split.select(torch.zeros(96, dtype=torch.bool))
    assert len(nothing.rows(by_length(nothing)[0])) == 0


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 500)), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_an_epoch_has_each_row_once(lengths, size, window, seed):
    split = lengths_only(*zip(*lengths, strict=True))

    def epoch(generator):
        return shuffled(split, size, generator, window)

    generator = torch.Generator().manual_seed(seed)
    batches = epoch(generator)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)
    again = epoch(torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_epochs_differ_and_batches_are_of_similar_length():
    split = lengths_only(torch.randint(1, 500, (4096,)).tolist())
    generator = torch.Generator().manual_seed(0)
    first, second = (shuffled(split, 64, generator) for _ in range(2))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    frames = total_frames(split)

    def padding(batches):
        return 1 - frames.sum() / sum(frames[rows].max() * len(rows) for rows in batches)

    assert padding(first) < 0.07
    assert padding(torch.randperm(4096).split(64)) > 0.45
    longest = torch.tensor([int(frames[rows].max()) for rows in first])
    assert not torch.equal(longest, longest.sort().values), "from short to long is a curriculum"


def test_without_sequences_an_epoch_is_a_plain_shuffle():
    split = SplitView({}, torch.arange(50), {}, {}, None, CPU)
    batches = shuffled(split, 8, torch.Generator().manual_seed(3))
    assert torch.equal(torch.cat(batches), torch.randperm(50, generator=torch.Generator().manual_seed(3)))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from([0.0, 1e3]))
def test_moments_by_block_are_those_of_the_whole(sizes, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    blocks = [torch.randn(n, 3, generator=generator) * torch.tensor([1.0, 50, 0]) + offset for n in sizes]
    mean, std = moments(blocks, 3)
    x = torch.cat(blocks).double()
    if not len(x):
        assert not mean.any()
        assert not std.any()
        return
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(std, x.std(0, correction=0), rtol=1e-5, atol=1e-6)


def test_encoders_are_standardised_by_valid_frames_alone(dataset):
    split, name = dataset.splits["train"], split_of(dataset)
    encoder = Concat(Spec.of(dataset), Settings()).encoders["audio"]
    encoder.standardise(name.frames("audio", size=7))
    valid = torch.arange(split.features["audio"].shape[1]) < split.lengths["audio"][:, None]
    x = split.features["audio"][valid].double()
    torch.testing.assert_close(encoder.mean.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.scale.double(), x.std(0, correction=0), rtol=1e-5, atol=1e-6)


def test_predictions_come_in_the_order_of_the_split(dataset):
    split = split_of(dataset, "valid")
    model = Concat(Spec.of(dataset), Settings()).eval()
    with torch.no_grad():
        one_by_one = torch.cat([model(split.rows(torch.tensor([i]))).outputs for i in range(len(split))])
    torch.testing.assert_close(predict(model, split).outputs, one_by_one)


def test_a_modality_absent_from_validation_still_has_a_teacher(dataset):
    valid = split_of(dataset, "valid")
    gone = valid.with_present(valid.present | {"vision": torch.zeros(40, dtype=torch.bool)})
    model = EBMC(Spec.of(dataset), Settings())
    model.start_balancing(gone, gone, {})
    assert model.temperatures()["vision"] == 1


class Watched(torch.Tensor):
    """A tensor that notes what share of it anything takes out; a view takes nothing."""

    taken: list[float] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **kwargs or {})
            if not isinstance(out, torch.Tensor):
                return out
            whole = args[0].untyped_storage()
            if out.untyped_storage().data_ptr() == whole.data_ptr():
                return out.as_subclass(cls)
            cls.taken.append(out.nbytes / whole.nbytes())
        return out


def test_no_split_is_ever_read_whole():
    """Training and validation take batches and blocks, never all rows."""
    dataset = synthetic(n=(600, 300, 8))
    watched = {
        name: replace(split, features={k: x.as_subclass(Watched) for k, x in split.features.items()})
        for name, split in dataset.splits.items()
    }
    spec = Spec.of(dataset)
    train_split, valid = (SplitView.of(watched[name], spec, CPU) for name in ("train", "valid"))
    Watched.taken.clear()
    settings = Settings(encoder="mean", stage1_epochs=1, stage2_epochs=1, batch_size=200)
    train(EBMC(spec, settings), train_split, valid, settings, 0, lambda *_: None)
    assert sum(Watched.taken) > 3 * 3 * 0.5, "three passes over three modalities have been seen"
    assert max(Watched.taken) < 0.9

"""Encoders of padded sequences: padding, order of the rows, empty and single frames."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmc_msa.model.encoders import Encoder, positions

KINDS = ["transformer", "mean"]


def build(kind, size=5, dim=8):
    torch.manual_seed(0)
    encoder = Encoder(size, dim, sequence=kind, dropout=0.3).double().eval()
    encoder.mean.normal_()
    return encoder


def sequences(lengths, frames, size=5, seed=0):
    x = torch.randn(len(lengths), frames, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, torch.tensor(lengths)


@pytest.mark.parametrize("kind", KINDS)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    more=st.integers(0, 7),
    junk=st.sampled_from([0.0, 3.0, float("nan"), float("inf")]),
    seed=st.integers(0, 9),
)
def test_padding_never_counts(kind, lengths, more, junk, seed):
    encoder = build(kind)
    x, lengths = sequences(lengths, 6, seed=seed)
    expected = encoder(x, lengths)
    padding = torch.arange(6 + more) >= lengths[:, None]
    longer = torch.cat([x, torch.zeros(len(x), more, 5, dtype=x.dtype)], 1)
    longer[padding] = junk
    got = encoder(longer, lengths)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, expected)
    for i, length in enumerate(lengths.tolist()):  # alone, and without any padding
        torch.testing.assert_close(encoder(x[i : i + 1, : max(length, 1)], lengths[i : i + 1]), expected[i : i + 1])


@pytest.mark.parametrize("kind", KINDS)
@given(st.permutations(range(5)))
def test_rows_do_not_see_each_other(kind, order):
    encoder = build(kind)
    x, lengths = sequences([0, 1, 4, 6, 2], 6)
    torch.testing.assert_close(encoder(x[order], lengths[order]), encoder(x, lengths)[order])


@pytest.mark.parametrize("kind", KINDS)
def test_empty_sequences_give_no_gradient_to_frames(kind):
    encoder = build(kind).train()
    x, lengths = sequences([0, 0], 3)
    x = x.fill_(float("nan")).requires_grad_()
    encoder(x, lengths).sum().backward()
    assert (x.grad == 0).all()
    assert all((p.grad == 0).all() for p in encoder.frames.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_stay_within_valid_frames(kind):
    encoder = build(kind)
    x, lengths = sequences([0, 1, 3], 4)
    x.requires_grad_()
    encoder(x, lengths).square().sum().backward()
    moved = (x.grad != 0).any(-1)
    assert torch.equal(moved, torch.arange(4) < lengths[:, None])
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_one_frame_attends_to_itself():
    """Of a single frame attention is the identity on values: an oracle without any softmax."""
    encoder = build("transformer")
    x, lengths = sequences([1], 1)
    frames = encoder.frames
    (block,) = frames.blocks
    h = frames.embed(x - encoder.mean) + positions(1, 8)
    h = h + block.out(block.qkv(block.attend(h))[..., 16:])
    h = frames.norm(h + block.mlp(block.think(h)))
    torch.testing.assert_close(encoder(x, lengths), encoder.body(h[:, 0]))


def test_attention_is_that_of_torch():
    block = build("transformer").frames.blocks[0]
    torch_own = torch.nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64)
    torch_own.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    x, lengths = sequences([2, 5, 1], 5, size=8)
    keys = torch.arange(5) < lengths[:, None]
    h = block.attend(x)
    seen = x + torch_own(h, h, h, key_padding_mask=~keys, need_weights=False)[0]
    torch.testing.assert_close(block(x, keys[:, None, None]), seen + block.mlp(block.think(seen)))


def test_positions():
    p = positions(50, 8)
    assert p.shape == (50, 8)
    assert p[7, 0].item() == pytest.approx(torch.tensor(7.0).sin().item())
    assert p[7, 7].item() == pytest.approx(torch.tensor(7 * 10_000 ** (-6 / 8)).cos().item())
    assert torch.cdist(p, p).fill_diagonal_(1).min() > 0.1, "each has its own"


def test_order_of_frames_counts():
    encoder = build("transformer")
    x, lengths = sequences([4], 4)
    assert not torch.allclose(encoder(x.flip(1), lengths), encoder(x, lengths))


@pytest.mark.slow
def test_compiles_as_one_graph_and_has_no_fast_path():
    encoder = build("transformer")
    x, lengths = sequences([0, 1, 4], 4)
    with torch.no_grad():
        plain = encoder(x, lengths)
        assert torch.equal(plain, torch.compile(encoder, fullgraph=True, backend="eager")(x, lengths))
    assert torch.equal(plain, encoder(x, lengths).detach())

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modbalance import EnergyCoordinator
from modbalance.tokens import flatten_tokens

B, T = 3, 4
DIMS = {"text": 5, "audio": 2}


def sequences():
    z = {name: torch.randn(B, T, d, requires_grad=True) for name, d in DIMS.items()}
    lengths = torch.tensor([4, 2, 0])
    return z, torch.arange(T) < lengths[:, None]


def test_rows_are_the_tokens_in_order():
    z, mask = sequences()
    target = torch.arange(B * T).reshape(B, T)
    tokens = flatten_tokens(z, mask, target)
    expected = [(i, t) for i in range(B) for t in range(T) if mask[i, t]]
    assert tokens.target.tolist() == [i * T + t for i, t in expected]
    for name, x in z.items():
        assert torch.equal(tokens.features[name], torch.stack([x[i, t] for i, t in expected]))
    assert all(here.all() for here in tokens.present.values())


def test_a_label_of_the_sequence_is_that_of_its_tokens():
    z, mask = sequences()
    assert flatten_tokens(z, mask, torch.tensor([7, 8, 9])).target.tolist() == [7, 7, 7, 7, 8, 8]
    assert flatten_tokens(z, mask, torch.randn(B, 2)).target.shape == (6, 2)
    assert flatten_tokens(z, mask).target is None


@given(st.lists(st.booleans(), min_size=2 * B * T, max_size=2 * B * T))
def test_masks_by_modality_are_presence_of_the_token(flags):
    z, _ = sequences()
    masks = dict(zip(DIMS, torch.tensor(flags).reshape(2, B, T), strict=True))
    tokens = flatten_tokens(z, masks)
    somewhere = masks["text"] | masks["audio"]
    assert torch.equal(tokens.mask, somewhere)
    for name, here in masks.items():
        assert torch.equal(tokens.restore(tokens.present[name]), here & somewhere)


def test_restore_goes_back_and_gradients_go_through():
    z, mask = sequences()
    tokens = flatten_tokens({**z, "vision": None}, mask)
    back = tokens.restore(tokens.features["text"], fill=-1.0)
    torch.testing.assert_close(back, torch.where(mask[..., None], z["text"], -1.0))
    assert tokens.restore(torch.ones(6)).tolist() == mask.float().tolist()
    back[mask].sum().backward()
    assert torch.equal(z["text"].grad, mask[..., None].expand(B, T, 5).float())


def test_a_component_on_tokens_is_that_on_each_of_them():
    z, mask = sequences()
    target = torch.randint(3, (B, T))
    tokens, balance = flatten_tokens(z, mask, target), EnergyCoordinator(DIMS, 3)
    energy = balance(tokens.features, tokens.target, tokens.present).energy["audio"]
    one_by_one = [
        balance({n: x[i, t][None] for n, x in z.items()}, target[i, t][None]).energy["audio"][0]
        for i, t in mask.nonzero().tolist()
    ]
    torch.testing.assert_close(energy, torch.stack(one_by_one))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda z, m: flatten_tokens({"text": z["text"][:, 0]}, m),
            r"'text': \(3, 5\).*expected \(B, T, D\) by modality",
        ),
        (
            lambda z, m: flatten_tokens({**z, "audio": z["audio"][:, :2]}, m),
            r"features\['audio'\] has shape.*masked_mean",
        ),
        (
            lambda z, m: flatten_tokens(z, m.float()),
            r"its mask is torch.float32 \(3, 4\), expected .*torch.bool \(3, 4\)",
        ),
        (lambda z, m: flatten_tokens(z, {"text": m}), r"features\['audio'\].*its mask is missing"),
        (
            lambda z, m: flatten_tokens(z, m, torch.zeros(2)),
            r"target has shape \(2,\), expected \(3, 4\) by token or \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call(*sequences())


def test_a_floating_target_of_the_masks_shape_needs_by():
    z, mask = sequences()
    target = torch.arange(float(B * T)).reshape(B, T)
    with pytest.raises(ValueError, match=r'which may be \(B, T\) by token or \(B, C\).*by="sequence"'):
        flatten_tokens(z, mask, target)
    assert torch.equal(flatten_tokens(z, mask, target, by="token").target, target[mask])
    assert torch.equal(flatten_tokens(z, mask, target, by="sequence").target, target[[0, 0, 0, 0, 1, 1]])
    assert torch.equal(flatten_tokens(z, mask, target.long()).target, target.long()[mask])
    with pytest.raises(ValueError, match="by is 'row', expected 'token'"):
        flatten_tokens(z, mask, target, by="row")
    with pytest.raises(ValueError, match=r"target has shape \(3,\), expected"):
        flatten_tokens(z, mask, target[:, 0], by="token")


def test_an_integer_mask_and_rows_of_another_number_raise():
    z, mask = sequences()
    with pytest.raises(ValueError, match=r"its mask is torch.int64 .*; pass mask.bool\(\)\."):
        flatten_tokens(z, mask.long())
    for rows in (5, 7):
        with pytest.raises(ValueError, match=rf"rows has shape \({rows}, 2\), expected \(6, ...\)"):
            flatten_tokens(z, mask).restore(torch.zeros(rows, 2))

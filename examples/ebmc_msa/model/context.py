"""The utterances around an utterance, read within one modality: between its encoder and the components.

One context encoder per modality, so that no modality sees another one before the components do. Utterances stay
flattened, `(B, dim)`: the conversations of a batch one after the other, in any order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ebmc_msa.data.conversation import Conversation
from ebmc_msa.model.attention import Block, positions

Context = Literal["gru", "transformer"]
WINDOW = 128  # utterances; a longer conversation is read in windows that overlap by half


class ContextEncoder(nn.Module):
    r"""Features of one modality with those of the other utterances of the conversation added.

    $$\tilde z_i = z_i + W\,c_i, \qquad
    c = \operatorname{GRU}(z_1, \dots, z_T) \ \text{or}\ \operatorname{Transformer}(z_1, \dots, z_T)$$

    The T utterances are those in which the modality is present: an absent one enters no context, as if the
    conversation lacked it there. Of speakers it only reads whether two are the same: the GRU whether the speaker is
    that of the utterance it read before, the transformer a learned bias of attention between those of one speaker.

    Args:
        dim: size of the features.
        kind: `gru`, in both directions or with `causal` forwards; or `transformer`, one layer with positions.
        causal: context of the past only.
        speakers: whether speakers are known.
        dropout: of the context that is added.
        window: most utterances that are read together, even. Longer conversations are read in windows that overlap
            by half, each utterance where it has most context on both sides, or with `causal` before it.

    Shape:
        z `(B, dim)`, present bool `(B,)` → `(B, dim)`, 0 where absent.

    Source: Poria et al., Context-dependent sentiment analysis in user-generated videos, ACL 2017 (bc-LSTM), here
    with a residual, so that a conversation of one utterance keeps its features.
    """

    def __init__(
        self,
        dim: int,
        kind: Context,
        *,
        causal: bool = False,
        speakers: bool = False,
        dropout: float = 0.1,
        window: int = WINDOW,
    ) -> None:
        super().__init__()
        if window < 2 or window % 2:
            raise ValueError(f"ContextEncoder: window is {window}, expected an even number from 2; pass {WINDOW}.")
        self.causal, self.speakers, self.window = causal, speakers, window
        reader = Recurrent if kind == "gru" else Attentive
        self.reader = reader(dim, causal=causal, speakers=speakers, dropout=dropout)
        self.out = nn.Linear(self.reader.width, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, conversation: Conversation, present: Tensor) -> Tensor:
        rows = in_time(conversation, present)
        empty = not len(rows)
        if empty:  # the parameters take part all the same: other processes wait for their gradients
            z, rows = z.new_zeros(1, z.shape[-1]), rows.new_zeros(1)
            conversation = Conversation(rows, rows, rows)
        plan = windows(conversation.id[rows], self.window, self.causal)
        speaker = conversation.speaker[rows][plan.index] if self.speakers else None
        context = self.reader(z[rows][plan.index], plan.size, speaker)
        context = self.out(context.flatten(0, 1)[plan.own])
        update = self.dropout(context)
        if empty:
            return z.new_zeros(len(present), z.shape[-1]) + 0.0 * update.sum()
        return torch.zeros_like(z).index_copy(0, rows, z[rows] + update)

    def extra_repr(self) -> str:
        return f"causal={self.causal}, speakers={self.speakers}, window={self.window}"


class Contextual(nn.Module):
    """An encoder of utterances and the context encoder of the same modality: what a unimodal branch begins with."""

    def __init__(self, encoder: nn.Module, context: ContextEncoder) -> None:
        super().__init__()
        self.encoder, self.context = encoder, context

    def standardise(self, blocks: Iterable[Tensor]) -> None:
        self.encoder.standardise(blocks)

    def load(self, folder: Path) -> None:
        """Of a text encoder: take the weights of the folder."""
        self.encoder.load(folder)

    def forward(self, x: Tensor, lengths: Tensor | None, present: Tensor, conversation: Conversation) -> Tensor:
        return self.context(self.encoder(x, lengths), conversation, present)


def description(encoders: nn.ModuleDict) -> dict[str, Any]:
    """The context that the encoders of a model read: its `encoder`, `causal`, `speakers`."""
    for encoder in encoders.values():
        if isinstance(encoder, Contextual):
            context = encoder.context
            kind = "gru" if isinstance(context.reader, Recurrent) else "transformer"
            return {"encoder": kind, "causal": context.causal, "speakers": context.speakers}
    return {"encoder": "none", "causal": False, "speakers": False}


class Recurrent(nn.Module):
    """A GRU over padded windows `(S, L, dim)` of `size` `(S,)` to `(S, L, width)`.

    Unless `causal`, the same GRU reads them backwards too, in the same pass, with an input that marks the direction:
    steps in time are what costs on a CPU. Its other inputs are the features and whether the speaker stays the same.
    """

    def __init__(self, dim: int, *, causal: bool, speakers: bool, dropout: float) -> None:
        super().__init__()
        self.causal, self.width = causal, dim if causal else 2 * dim
        self.gru = nn.GRU(dim + speakers + (not causal), dim, batch_first=True)

    def forward(self, x: Tensor, size: Tensor, speaker: Tensor | None) -> Tensor:
        if self.causal:
            return self.gru(_with_speaker(x, speaker))[0]
        back = reversed_places(size, x.shape[1])
        mirrored = _with_speaker(_take(x, back), None if speaker is None else speaker.gather(1, back))
        both = torch.cat([_with_speaker(x, speaker), mirrored])
        way = torch.zeros_like(both[..., :1])
        way[len(x) :] = 1
        ahead, behind = self.gru(torch.cat([both, way], -1))[0].chunk(2)
        return torch.cat([ahead, _take(behind, back)], -1)


def reversed_places(size: Tensor, length: int) -> Tensor:
    """`(S, length)`: each window's places from its last to its first; padding stays where it is."""
    place = torch.arange(length, device=size.device).expand(len(size), length)
    return torch.where(place < size[:, None], size[:, None] - 1 - place, place)


def _take(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand_as(x))


def _with_speaker(x: Tensor, speaker: Tensor | None) -> Tensor:
    """`x` and, where speakers are known, whether the speaker is that of the utterance read before."""
    if speaker is None:
        return x
    same = nn.functional.pad(speaker[:, 1:] == speaker[:, :-1], (1, 0))
    return torch.cat([x, same[..., None].to(x)], -1)


class Attentive(nn.Module):
    """One pre-norm layer of attention over padded windows `(S, L, dim)` of `size` `(S,)` to `(S, L, dim)`."""

    def __init__(self, dim: int, *, causal: bool, speakers: bool, dropout: float, heads: int = 4) -> None:
        super().__init__()
        self.width, self.causal = dim, causal
        self.block, self.norm = Block(dim, heads, dropout), nn.LayerNorm(dim)
        self.same = nn.Parameter(torch.zeros(heads)) if speakers else None

    def forward(self, x: Tensor, size: Tensor, speaker: Tensor | None) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        seen = (place < size[:, None])[:, None, None]  # (S, 1, 1, L): which keys count
        if self.causal:
            seen = seen & (place <= place[:, None])
        mask = torch.zeros(seen.shape, device=x.device).masked_fill(~seen, -torch.inf)
        if self.same is not None:
            same = (speaker[:, :, None] == speaker[:, None]).to(x)
            mask = mask + torch.einsum("h, s q k -> s h q k", self.same, same)
        x = x + positions(x.shape[1], x.shape[2]).to(x)
        return self.norm(self.block(x, mask))


class Windows(NamedTuple):
    index: Tensor  # (S, L) int64, the rows that each window reads; padding repeats a row
    size: Tensor  # (S,) int64, how many of them count
    own: Tensor  # (n,) int64, for each row the place in (S * L) where it is read


def windows(conversation: Tensor, size: int, causal: bool) -> Windows:
    """How `n` rows, conversation after conversation in the order of time, are read in windows of at most `size`.

    They begin every `size / 2` utterances. A row is read where it has at least a quarter of a window on both sides,
    as far as the conversation goes; with `causal` half a window before it. So with `causal` nothing that comes later
    moves a row to another window.

    Args:
        conversation: of each row, `(n,)`, n > 0; equal numbers stand together.
    """
    _, of, length = conversation.unique_consecutive(return_inverse=True, return_counts=True)
    begin = length.cumsum(0) - length
    place = torch.arange(len(of), device=of.device) - begin[of]
    stride = size // 2
    count = 1 + (length - size).clamp(min=0).add(stride - 1) // stride
    first = count.cumsum(0) - count
    window_of = torch.arange(len(count), device=of.device).repeat_interleave(count)
    offset = (torch.arange(len(window_of), device=of.device) - first[window_of]) * stride
    sizes = (length[window_of] - offset).clamp(max=size)
    longest = int(sizes.max())
    index = (begin[window_of] + offset)[:, None] + torch.arange(longest, device=of.device)
    # the window in which a row is read
    chosen = -(-(place - size + 1) // stride) if causal else (place - stride // 2) // stride
    chosen = chosen.clamp(min=0).minimum(count[of] - 1)
    own = (first[of] + chosen) * longest + place - chosen * stride
    return Windows(index.clamp(max=len(of) - 1), sizes, own)


def in_time(conversation: Conversation, present: Tensor) -> Tensor:
    """The rows in which something is present, conversation after conversation, in the order of time."""
    rows = conversation.in_time()
    return rows[present[rows]]

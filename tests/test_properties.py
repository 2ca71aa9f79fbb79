"""What holds for every component and every task: order, absence, batch size, zero losses, copies, precision."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from cases import DIMS, NAN, PRESENCE, TASKS, Batch, flat, make_batch, poison
from rig import COMPONENTS, Outcome, Rig, assert_close, outcome

each_component = pytest.mark.parametrize("component", COMPONENTS)
each_task = pytest.mark.parametrize("task", TASKS)
some = settings(max_examples=16)  # for each of four components


@st.composite
def batches(draw):
    """A task and a batch of 1 to 5 samples, present in any pattern."""
    task, size = draw(st.sampled_from(TASKS)), draw(st.integers(1, 5))
    torch.manual_seed(draw(st.integers(0, 999)))
    made = make_batch(task, size)
    flags = st.lists(st.booleans(), min_size=size, max_size=size)
    present = {name: torch.tensor(draw(flags)) for name in draw(st.sets(st.sampled_from(list(DIMS))))}
    return task, Batch(poison(made.features, present), made.target, present or None)


def take(batch, rows):
    present = None if batch.present is None else {name: p[rows] for name, p in batch.present.items()}
    return Batch({name: x[rows] for name, x in batch.features.items()}, batch.target[rows], present)


def per_sample(values):
    return {name: x for name, x in values.items() if x.dim()}


@each_component
@some
@given(case=batches(), order=st.permutations(list(DIMS)))
def test_the_order_of_modalities_does_not_matter(component, case, order):
    task, batch = case
    rig = Rig(component, task)
    other = Batch(
        {name: batch.features[name] for name in order},
        batch.target,
        batch.present and {name: batch.present[name] for name in order if name in batch.present},
    )
    assert_close(outcome(rig, *other), outcome(rig, *batch))


@each_component
@some
@given(case=batches(), data=st.data())
def test_the_order_of_samples_does_not_matter(component, case, data):
    task, batch = case
    rig, rows = Rig(component, task), data.draw(st.permutations(range(len(batch.target))))
    plain = outcome(rig, *batch)
    moved = Outcome(
        {name: x[rows] if x.dim() else x for name, x in plain.values.items()},
        {name: x[rows] for name, x in plain.features.items()},
        plain.parameters,
    )
    assert_close(outcome(rig, *take(batch, rows)), moved)


@each_component
@some
@given(case=batches(), value=st.sampled_from([0.0, 1e30, float("inf")]))
def test_what_an_absent_row_holds_does_not_matter(component, case, value):
    task, batch = case
    rig = Rig(component, task)
    plain, other = outcome(rig, *batch), outcome(rig, poison(batch.features, batch.present, value), *batch[1:])
    for result in (plain, other):  # returned features are the input itself where nothing moved them
        for name in (batch.present or {}) if component == "coordinator" else ():
            result.values[f"features.{name}"][~batch.present[name]] = 0.0
    assert_close(other, plain, rtol=0, atol=0)
    assert all(x.isfinite().all() for group in plain for x in group.values())
    for name, here in (batch.present or {}).items():
        assert (plain.features[name][~here] == 0).all()


@each_component
@some
@given(case=batches(), gone=st.sampled_from(list(DIMS)))
def test_a_modality_left_out_is_one_that_is_absent_for_all(component, case, gone):
    task, batch = case
    rig = Rig(component, task)
    present = {**(batch.present or {}), gone: torch.zeros(len(batch.target), dtype=torch.bool)}
    marked = outcome(rig, poison(batch.features, present), batch.target, present)
    features = {name: x for name, x in batch.features.items() if name != gone}
    known = {name: p for name, p in present.items() if name != gone or component != "distiller"}
    assert_close(outcome(rig, features, batch.target, known), marked, only_common=True)


@pytest.mark.parametrize("component", ["decoupler", "coordinator", "distiller"])
@each_task
def test_an_absent_modality_more_changes_nothing(component, task):
    """Also against a component that was never built for it. A generator's input width counts modalities."""
    batch = make_batch(task, presence="some")
    large = Rig(component, task, {**DIMS, "touch": 7})
    small = Rig(component, task)
    shared = {k: v for k, v in large.state_dict().items() if "touch" not in k and ".gate." not in k}
    small.load_state_dict({**small.state_dict(), **shared})
    features = {**batch.features, "touch": torch.full((6, 7), NAN, dtype=torch.float64)}
    present = {**batch.present, "touch": torch.zeros(6, dtype=torch.bool)}
    more, less = outcome(large, features, batch.target, present), outcome(small, *batch)
    assert_close(more, less, only_common=True)
    assert set(less.values) < set(more.values)


@each_component
@some
@given(case=batches())
def test_a_sample_without_any_modality_changes_nothing(component, case):
    task, batch = case
    rig = Rig(component, task)
    rows = torch.cat([torch.arange(len(batch.target)), torch.zeros(1, dtype=torch.long)])
    longer = take(batch, rows)
    present = {name: torch.ones(len(rows), dtype=torch.bool) for name in DIMS} | (longer.present or {})
    for name in DIMS:
        present[name][-1] = False
    more = outcome(rig, poison(longer.features, present), longer.target, present)
    cut = Outcome(
        {k: x[:-1] if x.dim() else x for k, x in more.values.items()},
        {k: x[:-1] for k, x in more.features.items()},
        more.parameters,
    )
    assert_close(cut, outcome(rig, *batch))


MEANS = {
    "decoupler": ("redundancy", "preservation"),
    "enhancer": ("loss", "reconstruction", "task"),
    "coordinator": ("penalty", "descent", "fit"),
    "distiller": ("loss",),
}


@each_component
@some
@given(task=st.sampled_from(TASKS), sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 99))
def test_means_do_not_depend_on_the_batch_size(component, task, sizes, seed):
    torch.manual_seed(seed)
    rig, batch, first = Rig(component, task), make_batch(task, sum(sizes)), sizes[0]
    pieces = (batch, take(batch, slice(first)), take(batch, slice(first, None)))
    whole, head, tail = (outcome(rig, *piece).values for piece in pieces)
    for name in MEANS[component]:
        expected = (sizes[0] * head[name] + sizes[1] * tail[name]) / sum(sizes)
        torch.testing.assert_close(whole[name], expected, rtol=1e-9, atol=1e-10)
    for name, x in per_sample(whole).items():
        torch.testing.assert_close(x, torch.cat([head[name], tail[name]]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gap", ["pull", "paper", "paper_per_sample", None])
@each_task
def test_duplicating_the_batch_changes_no_term_of_the_coordinator(task, gap):
    rig, batch = Rig("coordinator", task, gap=gap), make_batch(task, presence="some")
    once, twice = outcome(rig, *batch), outcome(rig, *take(batch, torch.arange(12) % 6))
    for name in ("loss", "gap", "penalty", "descent", "fit"):
        torch.testing.assert_close(twice.values[name], once.values[name])
    assert_close([twice.parameters], [once.parameters])


@each_component
@each_task
def test_with_nothing_present_the_loss_is_a_zero_with_a_graph(component, task):
    rig, batch = Rig(component, task), make_batch(task, presence="none")
    result = outcome(rig, *batch)
    assert all(x == 0 for x in result.values.values() if not x.dim())
    assert all((g == 0).all() for g in (*result.features.values(), *result.parameters.values()))


@pytest.mark.parametrize("component", ["decoupler", "enhancer", "coordinator"])
@each_task
def test_without_a_target_every_loss_still_has_a_graph(component, task):
    rig, batch = Rig(component, task), make_batch(task, presence="some")
    result = outcome(rig, batch.features, None, batch.present)
    assert all(g.isfinite().all() for g in (*result.features.values(), *result.parameters.values()))
    zero = {"decoupler": ["preservation"], "enhancer": ["task"], "coordinator": ["loss", "gap", "penalty", "fit"]}
    assert all(result.values[name] == 0 for name in zero[component])


@each_component
@each_task
@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_of_none_or_one(component, task, size):
    result = outcome(Rig(component, task), *make_batch(task, size))
    assert all(x.isfinite().all() for group in result for x in group.values())


@each_component
@each_task
@pytest.mark.parametrize("presence", PRESENCE)
def test_float64_stays_float64(component, task, presence):
    result = outcome(Rig(component, task), *make_batch(task, presence=presence))
    floats = [x for x in result.values.values() if x.is_floating_point()]
    assert {x.dtype for x in floats} == {torch.float64}


@each_component
def test_float32_agrees_with_float64(component):
    rig, batch = Rig(component), make_batch("classification", presence="some")
    low = copy.deepcopy(rig).float()
    features = {name: x.float() for name, x in batch.features.items()}
    expected, got = outcome(rig, *batch), outcome(low, features, *batch[1:])
    assert_close(got, expected, rtol=1e-3, atol=1e-4, check_dtype=False)


@each_component
def test_state_dict_round_trip_and_deepcopy(component):
    rig, batch = Rig(component), make_batch("classification", presence="some")
    expected = outcome(rig, *batch)
    twin, other = copy.deepcopy(rig), Rig(component)
    other.load_state_dict(rig.state_dict())
    with torch.no_grad():
        for p in rig.parameters():
            p.zero_()
    for same in (twin, other):
        assert_close(outcome(same, *batch), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_component
@each_task
def test_training_under_autocast_stays_finite(component, task, dtype):
    rig, batch = Rig(component, task).float(), make_batch(task, 8, presence="some", dtype=torch.float32)
    optimiser = torch.optim.SGD(rig.parameters(), lr=1e-4)
    for _ in range(2):
        rig.zero_grad()
        with torch.autocast("cpu", dtype):
            result = rig(batch.features, batch.target, batch.present)
        assert result.loss.dtype == torch.float32
        assert result.loss.isfinite()
        if dtype == torch.float16:
            return  # a gradient in float16 may need a scaler
        result.loss.backward()
        assert all(p.grad.isfinite().all() for p in rig.parameters())
        optimiser.step()


@each_component
def test_scalars_are_the_detached_terms(component):
    result = Rig(component)(*make_batch("classification"))
    more = {"decoupler": {"alignment"}, "coordinator": {"gap"}}.get(component, set())
    expected = {"loss", *MEANS[component]} | more
    assert result.scalars().keys() == expected
    assert all(not x.requires_grad and x == getattr(result, name) for name, x in result.scalars().items())
    assert result._fields[0] == "loss"
    assert result.loss.dim() == 0


@each_component
def test_inference_mode_gives_the_same_values(component):
    rig, batch = Rig(component), make_batch("classification", presence="some")
    expected = outcome(rig, *batch).values
    with torch.inference_mode():
        result = rig(*batch)
    assert_close([flat(result)], [expected])


@each_component
def test_repr_tells_the_task(component):
    assert "task='classification'" in repr(Rig(component).component)

"""The ledger counts real tensors as the allocator does, and knows what a gradient's sum costs."""

import itertools

import pytest
import torch

from lrk.plan.ledger import (
    ATTENTION,
    BACKWARD,
    FORWARD,
    HEAD,
    SAVED,
    TEMPORARY,
    Ledger,
    Moment,
    Workspace,
)
from lrk.plan.prices import prices_on
from lrk.plan.workspace import Device


def without_price(*_):
    return None, 0


def recorded(compute, granularity=1, price=without_price):
    ledger = Ledger(price, granularity)
    with ledger:
        compute(ledger)
    return ledger.usage()


def test_peak_of_temporaries():
    def compute(ledger):
        a = torch.empty(100)
        b = a + 1
        del a
        c = b * 2
        del b, c

    (usage,) = recorded(compute)
    assert usage.total == 800
    assert usage.parts[TEMPORARY] == 800


def test_views_and_writes_in_place_cost_nothing():
    def compute(ledger):
        a = torch.empty(100)
        a.view(10, 10).t().add_(1)
        a[3:7].zero_()

    assert recorded(compute)[0].total == 400


def test_allocations_are_rounded_up():
    assert recorded(lambda _: torch.empty(1), granularity=512)[0].total == 512


def test_a_storage_that_is_resized():
    """As FSDP2 frees gathered weights, and brings them back."""

    def compute(ledger):
        a = torch.empty(100)
        a.untyped_storage().resize_(0)
        b = torch.empty(50)
        ledger.enter_moment(Moment(BACKWARD))
        a.untyped_storage().resize_(400)
        del a, b

    assert [usage.total for usage in recorded(compute)] == [400, 600]


def test_what_outlives_the_forward_pass_was_saved():
    kept = []

    def compute(ledger):
        kept.append(torch.empty(100))
        scratch = torch.empty(50)
        del scratch
        ledger.enter_moment(Moment(HEAD))
        ledger.enter_moment(Moment(BACKWARD))
        kept.clear()

    forward, head, _ = recorded(compute)
    assert forward.moment == Moment(FORWARD)
    assert (forward.parts[SAVED], forward.parts[TEMPORARY]) == (400, 200)
    assert head.parts[SAVED] == 400


def test_a_workspace_is_on_top_of_the_results():
    ledger = Ledger(lambda func, *_: (Workspace(ATTENTION, 7), 11))
    with ledger:
        kept = torch.empty(100)
    (usage,) = ledger.usage()
    assert (usage.total, usage.parts[ATTENTION], ledger.flops) == (407, 7, 11)
    del kept


def by_ledger(step, price=without_price):
    usages = recorded(lambda _: step(), price=price)
    return max(usage.total for usage in usages)


def by_allocator(step):
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))


def meeting() -> None:
    """Four gradients of one tensor meet."""
    x = torch.ones(100_000, requires_grad=True) * 2
    (x.sin() + x.cos() + x.exp() + x.tanh()).sum().backward()


def meeting_views() -> None:
    """Two gradients of a weight meet, the first of which is a view."""
    weight = torch.ones(200, 300, requires_grad=True)
    ((torch.ones(50, 200) @ weight) @ weight.t()).sum().backward()


def meeting_after_a_residual() -> None:
    x = torch.ones(100_000, requires_grad=True) * 2
    y = x + x.sin().square()
    (y + y.cos().square()).sum().backward()


@pytest.mark.parametrize("step", [meeting, meeting_views, meeting_after_a_residual])
def test_sums_of_gradients_cost_what_they_do_without_a_mode(step):
    """Autograd adds in place where it can, but never under a mode."""
    assert by_ledger(step) == pytest.approx(by_allocator(step), abs=100)


def adding_two_dtypes() -> None:
    narrow = torch.ones(100, 300, dtype=torch.bfloat16)
    (narrow[:1] * torch.ones(100, 300) + narrow).sum()


def masking() -> None:
    x = torch.ones(100, 300)
    mask = x > 0
    torch.where(mask, x, x).masked_fill(mask, 0.0).sum()


def test_a_mask_is_read_as_it_is():
    found = by_ledger(masking, prices_on(Device("cpu", 1)))
    assert found == pytest.approx(by_allocator(masking), abs=100)


def test_a_cpu_converts_operands_of_another_dtype():
    """A GPU does not: there is nothing to count."""
    on_cpu, on_gpu = (prices_on(Device(kind, 1)) for kind in ("cpu", "cuda"))
    assert by_ledger(adding_two_dtypes, on_cpu) == pytest.approx(
        by_allocator(adding_two_dtypes), abs=100
    )
    assert by_ledger(adding_two_dtypes, on_gpu) == by_ledger(adding_two_dtypes)
    assert by_ledger(adding_two_dtypes) < by_allocator(adding_two_dtypes)

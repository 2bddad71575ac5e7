"""The same release in any batch and by any worker; and models or guards that must not serve."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guarded_servers import (
    CPU,
    PATIENCE,
    SHAPE,
    eventually,
    linear_model,
    rounding,
    served_model,
    serving,
)
from oneway.defenses import ServableDefense, open_guard
from oneway.defenses.adversarial_noise import AdversarialNoise
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses.rounding import Rounding
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError, OnewayError
from oneway.inversion import Inverter
from oneway.releases import guarded_release, looked_up_release, release
from oneway.serving import GuardedModel, GuardedScores
from oneway.serving.guarded import Scored
from oneway.serving.http_errors import RefusedError
from oneway.targets import TorchTarget
from rows import leads

KEY = b"0123456789abcdef"


class RowByRow(nn.Module):
    """A model whose rows have the same bits in any batch on any machine: no BLAS is in it."""

    def __init__(self, classes=10):
        super().__init__()
        drawn = torch.randn(classes, 16, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(drawn)

    def forward(self, images):
        return (images.flatten(1)[:, None] * self.weight).sum(-1)


def noise():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inverter = Inverter(10, SHAPE, hidden_layers=1)
    return ServableDefense(
        "adversarial-noise", "1", AdversarialNoise(inverter, step_size=0.1, steps=3)
    )


def random_guard():
    return open_guard("gaussian-noise", {"keep_label": True}, key=KEY, device=CPU)


QUERIES = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(5))

GUARDS = {"rounding": rounding, "adversarial-noise": noise, "gaussian-noise": random_guard}


# The bits of a gradient are BLAS's.
TOLERANCE = {"adversarial-noise": 1e-5}


@pytest.fixture(scope="module")
def models():
    target = TorchTarget(RowByRow())
    served = {name: served_model(guard(), target=target) for name, guard in GUARDS.items()}
    return {name: (model, model.answer([QUERIES])[0]) for name, model in served.items()}


@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11)))
def test_a_query_is_released_the_same_in_any_batch(models, order, cuts):
    places = torch.tensor(order).tensor_split(sorted(cuts))
    for name, (model, whole) in models.items():
        tolerance = TOLERANCE.get(name, 0)
        released = model.answer([QUERIES[some] for some in places])
        for some, rows in zip(places, released, strict=True):
            assert abs(rows - whole[some.numpy()]).max() <= tolerance, name
        (alone,) = model.answer([QUERIES[order[:1]]])
        assert abs(alone - whole[order[:1]]).max() <= tolerance, name


def test_labels_are_the_models_strictly(models):
    labels = RowByRow()(QUERIES).argmax(1)
    for name, (_, released) in models.items():
        assert leads(torch.from_numpy(released), labels), name


def test_two_workers_answer_the_same_under_load():
    """Clients at once, over sockets, to two servers that share nothing but their options."""
    target = TorchTarget(RowByRow())
    generator = torch.Generator().manual_seed(2)
    places = [torch.randperm(12, generator=generator)[: 1 + at % 5] for at in range(24)]
    for name, guard in GUARDS.items():
        with serving(guard(), target=target) as one, serving(guard(), target=target) as other:
            alone = torch.cat([one.release(query[None]) for query in QUERIES])
            with ThreadPoolExecutor(8) as pool:
                answers = pool.map(
                    lambda at, workers=(one, other): workers[at % 2].release(QUERIES[places[at]]),
                    range(len(places)),
                )
                for at, released in enumerate(answers):
                    moved = (released - alone[places[at]]).abs().max()
                    assert moved <= TOLERANCE.get(name, 0), name


class Blocked(nn.Module):
    """A model whose last rows have other bits, unless batches are multiples of 4: as of BLAS."""

    def __init__(self):
        super().__init__()
        self.inner = RowByRow()

    def forward(self, images):
        scores = self.inner(images)
        whole = len(images) // 4 * 4
        return torch.cat([scores[:whole], scores[whole:] * (1 + 1e-6)])


class Crowded(RowByRow):
    """A model whose rows have other bits with any other number of rows beside them."""

    def forward(self, images):
        return super().forward(images) * (1 + 1e-6 * len(images))


class CrowdedGuard(Rounding):
    """A guard whose answers have other bits with any other number of rows beside them."""

    needs_same_bits = True

    def transform(self, logits):
        return super().transform(logits) * (1 + 1e-6 * len(logits))


def test_batches_are_filled_up_no_more_than_the_guard_needs_and_the_self_test_knows():
    given = {"input_shape": SHAPE, "device": CPU, "batch_size": 64}
    alone = ServableDefense("adversarial-noise", "0", CrowdedGuard())
    for module, guard, multiple, size, one_by_one, same_bits in (
        (RowByRow(), random_guard(), 1, 64, False, True),
        (Blocked(), random_guard(), 4, 64, False, True),
        (Crowded(), random_guard(), 1, 64, True, True),  # the model; the guard gets all at once
        (Crowded(), alone, 1, 1, True, True),  # each query by itself: nothing else is left
        (Blocked(), rounding(), 1, 64, False, False),
        (Crowded(), rounding(), 1, 64, False, False),
    ):
        model = GuardedModel(TorchTarget(module), guard, **given)
        case = type(module).__name__, guard.name
        assert model.check() is same_bits, case
        assert (model.batch_multiple, model.batch_size) == (multiple, size), case
        assert model.one_by_one is one_by_one, case
        assert model.classes == 10
        if same_bits:
            (whole,) = model.answer([QUERIES])
            parts = model.answer([QUERIES[:1], QUERIES[1:6], QUERIES[6:]])
            assert np.array_equal(np.concatenate(parts), whole), case
    loose = GuardedModel(TorchTarget(Blocked()), random_guard(), batch_multiple=1, **given)
    assert not loose.check()  # as its user wants it


class Counting(Rounding):
    """Rounds, and counts how often it is asked; the bits follow the number of rows if unsteady."""

    needs_same_bits = True

    def __init__(self, unsteady=False):
        super().__init__(decimals=1)
        self.asked, self.unsteady = [], unsteady

    def transform(self, logits):
        self.asked.append(len(logits))
        return super().transform(logits) * (1 + 1e-6 * self.unsteady * (len(logits) % 4))


def scored(rows, images=None):
    return Scored(RowByRow()(QUERIES[rows]).double().softmax(-1).detach().numpy(), images)


def test_answers_of_a_server_are_guarded_together_as_they_are_alone():
    for unsteady, multiple in ((False, 1), (True, 4)):
        defense = Counting(unsteady)
        guard = ServableDefense("counting", "1", defense)
        guarded = GuardedScores(guard, "confidences", device=CPU)
        guarded.check([scored(slice(0, 12))], scored(slice(0, 12)).scores)
        assert guarded.batch_multiple == multiple
        cuts = [slice(0, 1), slice(1, 4), slice(4, 12)]
        alone = [guarded.answer([scored(rows)])[0] for rows in cuts]
        defense.asked.clear()
        together = guarded.answer([scored(rows) for rows in cuts])
        assert defense.asked == [12]
        assert all(map(np.array_equal, together, alone))
        # Queries of another shape, or none, are no reason to refuse either.
        mixed = [scored(cuts[0], QUERIES[:1]), scored(cuts[1]), scored(cuts[2], QUERIES[4:, 0])]
        assert all(map(np.array_equal, guarded.answer(mixed), alone))


class Normalising(nn.Module):
    """A model that is not one per query: it looks at the whole batch."""

    def __init__(self):
        super().__init__()
        self.inner = linear_model()

    def forward(self, images):
        return self.inner(images - images.mean(0))


class Wrong(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.inner, self.change = linear_model(), change

    def forward(self, images):
        return self.change(self.inner(images))


def test_a_model_that_cannot_be_guarded_does_not_start():
    for module, said in (
        (Normalising(), "max_batch_size=1"),
        (Wrong(lambda scores: scores * torch.nan), "finite"),
        (Wrong(lambda scores: scores[:, :1]), "K >= 2"),
        (Wrong(lambda scores: scores[:1]), "shape"),
        (Wrong(lambda scores: scores + torch.randn(3)), "when they are asked again"),
        # In eval mode, too.
        (Wrong(lambda scores: nn.functional.dropout(scores, 0.2)), "training=self.training"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), linear_model()), "batch_mult"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), "takes queries of this shape"),
        (Wrong(lambda scores: scores.softmax(-1)), "declared logits, but look like confidences"),
    ):
        with pytest.raises(OnewayError, match=said):
            served_model(target=TorchTarget(module))


def test_a_target_of_the_user_s_whose_logits_are_probabilities_does_not_start():
    class Foreign:
        def logits(self, images):
            return linear_model()(images).softmax(-1).detach()

        __call__ = logits

    with pytest.raises(InvalidTensorError, match="the logits of the model are declared logits"):
        served_model(target=Foreign())


class Wrapped:
    requires_input, keeps_label, deterministic = False, True, True

    def __init__(self, change):
        self.change, self.inner = change, Rounding(decimals=1)

    def __call__(self, logits, images=None):  # noqa: ARG002
        return self.change(self.inner(logits), logits)


def test_a_guard_that_does_not_work_does_not_start():
    for change, said in (
        (lambda _, logits: logits, "changes nothing"),
        (lambda rounded, _: rounded + torch.randn(rounded.shape) / 1000, "deterministic"),
        (lambda rounded, _: rounded * torch.nan, "finite"),
        (lambda rounded, _: -rounded, "promises to keep labels"),
        (lambda rounded, _: rounded[:, :2], "shape"),
    ):
        with pytest.raises(DefenseFailedError, match=said):
            served_model(ServableDefense("wrapped", "1", Wrapped(change)))


def raising(rows):
    raise ValueError(str(rows.tolist()))


def test_what_a_codebook_looks_up_is_a_release_or_nothing_and_that_of_its_answer(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(400, 3, generator=generator)
    book, true = CodebookRelease.fit(logits, generator=generator), CodebookRelease.probabilities
    for decimals in (None, 2):
        wanted = guarded_release(book, logits, decimals=decimals).confidences
        assert torch.equal(looked_up_release(book, logits, decimals=decimals), wanted)
    for change in (
        lambda rows: rows.flip(-1),  # other labels
        lambda rows: rows * torch.nan,
        lambda rows: rows.double(),
        lambda rows: rows[1:],
        lambda rows: rows.tolist(),
        raising,
    ):
        monkeypatch.setattr(
            CodebookRelease,
            "probabilities",
            lambda self, rows, change=change, **how: change(true(self, rows, **how)),
        )
        with pytest.raises(DefenseFailedError, match="nothing is released") as raised:
            looked_up_release(book, logits)
        assert "0." not in str(raised.value)
    # Labels are right, and scores are clean.
    monkeypatch.setattr(CodebookRelease, "probabilities", lambda _, rows, **__: release(rows))
    with pytest.raises(DefenseFailedError, match="looks up other answers"):
        served_model(ServableDefense("codebook", "1", book))


def test_a_guard_that_works_on_saturated_scores_alone_is_a_guard():
    """The self test must look at more than the model's own scores, which may be all mild."""
    guard = open_guard("confidence-cutoff", {}, device=CPU)
    served_model(guard, target=TorchTarget(Wrong(lambda scores: scores / 100)))


def test_nothing_is_released_that_is_no_release():
    """Whatever a guard gives, clients get float32 probabilities with one maximum a row, or none."""

    class Changing:
        requires_input, keeps_label, deterministic = False, False, True
        change = staticmethod(Rounding(decimals=1))

        def __call__(self, logits, images=None):  # noqa: ARG002
            return Changing.change(logits)

    model = served_model(ServableDefense("changing", "1", Changing()))
    for bad in (
        lambda rows: rows * torch.nan,
        lambda rows: rows.double(),
        lambda rows: rows[:, :2],  # a class fewer
        lambda rows: torch.cat([rows, rows[:1]]),
    ):
        Changing.change = staticmethod(bad)
        with pytest.raises(RefusedError):
            model.answer([QUERIES])
    for tied in ([0.0, 0.0, 0.0], [900.0, 900.0, -900.0]):
        Changing.change = staticmethod(lambda rows, tied=tied: rows * 0 + torch.tensor(tied))
        (released,) = model.answer([QUERIES])
        assert released.dtype == np.float32
        assert ((released >= 0) & (released <= 1)).all()
        assert leads(torch.from_numpy(released), torch.zeros(len(QUERIES), dtype=torch.int64))


def test_a_batch_waits_for_no_more_than_it_may():
    """Requests that arrive together are asked together, and never more than the batch may hold."""
    sizes, entered, go = [], threading.Event(), threading.Event()

    class Counting(nn.Module):
        counting = False

        def __init__(self):
            super().__init__()
            self.inner = linear_model()

        def forward(self, images):
            if self.counting:
                sizes.append(len(images))
                entered.set()
                assert go.wait(PATIENCE)
            return self.inner(images)

    model = Counting()
    limits = {"max_batch_size": 8, "max_waiting_rows": 64}
    target = TorchTarget(model)
    with serving(target=target, **limits) as server, ThreadPoolExecutor(8) as pool:
        model.counting = True
        answers = [pool.submit(server.infer, QUERIES[:4])]
        assert entered.wait(PATIENCE)
        answers += [pool.submit(server.infer, QUERIES[:3]) for _ in range(5)]
        eventually(lambda: server.metric("oneway_waiting_queries 15.0"))
        go.set()
        assert all(answer.result().status_code == 200 for answer in answers)
    assert sizes == [4, 8, 8, 4]  # 3 + 3, filled up, twice; then 3


def test_errors_of_a_model_are_refusals_without_a_word():
    model = served_model()
    model.target.module.training = True
    with pytest.raises(RefusedError) as caught:
        model.answer([QUERIES])
    assert caught.value.status == 503
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_options_outside_their_range_are_refused():
    with pytest.raises(InvalidOptionError, match="batch_multiple"):
        GuardedModel(
            TorchTarget(linear_model()),
            rounding(),
            input_shape=SHAPE,
            device=CPU,
            batch_multiple=0,
        )


def test_a_release_is_what_the_library_gives():
    (released,) = served_model().answer([QUERIES])
    clean = TorchTarget(linear_model()).logits(QUERIES)
    assert torch.equal(torch.from_numpy(released), release(rounding().defense(clean)))

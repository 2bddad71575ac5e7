"""A model that writes into its input changes nothing of the caller's, and answers as it should.

So it is with every kind of target and adapter; and what comes back is no part of the input.
"""

import asyncio
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from guarded_servers import SHAPE, linear_model
from oneway.adapters import Guard, GuardedFunction, GuardedModule, GuardedSession
from oneway.adapters.ray import answer_together
from oneway.auditing import AuditTarget
from oneway.auditing.audit_target import ask
from oneway.contracts import ScoredTarget, Target
from oneway.defenses.identity import Identity
from oneway.targets import (
    CallableTarget,
    DefendedTarget,
    RecordedTarget,
    ScoredCallableTarget,
    TorchTarget,
    open_target,
    records_target,
)
from oneway.targets.estimator import estimator_target

QUERIES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(8))
LINEAR = linear_model()
SHIFTED = QUERIES - QUERIES.amin((1, 2, 3), keepdim=True)
CLEAN = LINEAR(SHIFTED).detach()
CONFIDENCES = CLEAN.softmax(-1)


class InPlace(nn.Module):
    """Subtracts each image's darkest pixel from the image itself."""

    def __init__(self):
        super().__init__()
        self.inner = linear_model()
        self.inner[1].weight.data = self.inner[1].weight.data.contiguous()

    def forward(self, images):
        images -= images.amin((1, 2, 3), keepdim=True)
        return self.inner(images)


def logits_of(queries):
    """Do the same to an array."""
    queries -= queries.reshape(len(queries), -1).min(1).reshape(-1, 1, 1, 1)
    return LINEAR(torch.from_numpy(queries)).detach().numpy()


def confidences_of(queries):
    return torch.from_numpy(logits_of(queries)).softmax(-1).numpy()


class Foreign(Target):
    """A target of the user's, which also answers with its input."""

    def __call__(self, images):
        images -= images.amin((1, 2, 3), keepdim=True)
        return LINEAR(images).softmax(-1).detach()


def network():
    return InPlace()


def arrays():
    return logits_of


class Classifier:
    classes_ = np.arange(3)

    def predict_proba(self, rows):
        return confidences_of(rows.reshape(-1, *SHAPE))

    def predict(self, rows):
        return self.predict_proba(rows).argmax(1)


def opened(where, outputs="logits"):
    target = open_target(str(where), outputs=outputs, device=torch.device("cpu"), batch_size=4)
    return target.logits if isinstance(target, ScoredTarget) else target


def factory(name, outputs="logits"):
    def way(_):
        sys.modules["in_place_of_user"] = sys.modules[__name__]
        return opened(f"in_place_of_user:{name}", outputs)

    return way


def script(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is retired
        torch.jit.save(torch.jit.script(InPlace()), str(folder / "m.pt"))
        return opened(folder / "m.pt")


def export(folder):
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(InPlace(), (QUERIES.clone(),), dynamic_shapes=sizes)
    torch.export.save(program, folder / "m.pt2")
    return opened(folder / "m.pt2")


def audited(_):
    many = torch.rand(250, *SHAPE, generator=torch.Generator().manual_seed(9))
    test = torch.cat([QUERIES, many[200:]])
    target = AuditTarget(TorchTarget(InPlace()), many[:200], test, guarded=Foreign())

    def answered(_):
        before = many.clone(), test.clone()
        answers = ask(target, Identity())
        assert answers.label_changes == 0
        assert torch.equal(many, before[0])
        assert torch.equal(test, before[1])
        torch.testing.assert_close(answers.trace.clean_logits[:6], CLEAN)
        return answers.trace.released[:6]

    return answered


def to_and_from_arrays(answer):
    def answered(queries):
        return torch.from_numpy(answer(queries.numpy()))

    return lambda _: answered


def session():
    return SimpleNamespace(
        run=lambda names, feed, _: [logits_of(feed["image"]) for _ in names],
        get_inputs=lambda: [SimpleNamespace(name="image")],
        get_outputs=lambda: [SimpleNamespace(name="y", type="tensor(float)", shape=[None, 3])],
    )


def through_session(queries):
    guarded = GuardedSession(session(), Identity(), output_name="y", outputs="logits")
    return guarded.run(None, {"image": queries})[0]


def through_ray(queries):
    async def model(asked):
        return logits_of(asked)

    (answer,) = asyncio.run(answer_together([queries], model, Guard(Identity(), "logits")))
    return answer


def classifiers(_):
    base = pytest.importorskip("sklearn.base")
    from oneway.adapters.scikit_learn import GuardedClassifier

    class Fitted(Classifier, base.ClassifierMixin, base.BaseEstimator):
        pass

    guarded = GuardedClassifier.of_fitted(Fitted(), Identity())
    return lambda queries: torch.from_numpy(guarded.predict_proba(queries.flatten(1).numpy()))


def pyfuncs(_):
    adapter = pytest.importorskip("oneway.adapters.mlflow").GuardedPyfunc
    guarded = adapter(lambda _: logits_of, lambda _: Guard(Identity(), "logits"))
    guarded.load_context(SimpleNamespace(artifacts={}))
    return lambda queries: torch.from_numpy(guarded.predict(None, queries.numpy()))


def decode(records):
    records *= 2
    return (records / 2).reshape(-1, *SHAPE)


LOGITS = {
    "TorchTarget": lambda _: TorchTarget(InPlace(), batch_size=4).logits,
    "TorchTarget, with a gradient": lambda _: TorchTarget(InPlace()).differentiable_logits,
    "ScoredCallableTarget": lambda _: ScoredCallableTarget(logits_of, batch_size=4).logits,
    "a factory's module": factory("network"),
    "a factory's function": factory("arrays"),
    "TorchScript": script,
    "an exported program": export,
    "records": lambda _: (
        lambda queries: records_target(TorchTarget(InPlace()), decode).logits(queries.flatten(1))
    ),
}

RELEASES = {
    "TorchTarget": lambda _: TorchTarget(InPlace()),
    "CallableTarget": lambda _: CallableTarget(confidences_of, batch_size=4),
    "a defended user's target": lambda _: DefendedTarget(Foreign(), Identity(), batch_size=4),
    "a defended factory's target": lambda folder: DefendedTarget(
        factory("Foreign", None)(folder), Identity()
    ),
    "an estimator": lambda _: estimator_target(Classifier(), batch_size=4, name="the model"),
    "records": lambda _: (
        lambda queries: records_target(CallableTarget(confidences_of), decode)(queries.flatten(1))
    ),
    "an audit": audited,
    "GuardedModule": lambda _: GuardedModule(InPlace(), Identity(), outputs="logits"),
    "GuardedFunction": lambda _: GuardedFunction(InPlace(), Guard(Identity(), "logits")),
    "GuardedFunction, arrays": to_and_from_arrays(
        GuardedFunction(logits_of, Guard(Identity(), "logits"))
    ),
    "GuardedSession": to_and_from_arrays(through_session),
    "Ray Serve": to_and_from_arrays(through_ray),
    "GuardedClassifier": classifiers,
    "GuardedPyfunc": pyfuncs,
}

WAYS = [(name, way, CLEAN) for name, way in LOGITS.items()]
WAYS += [(name, way, CONFIDENCES) for name, way in RELEASES.items()]


@pytest.mark.parametrize(("name", "way", "wanted"), WAYS, ids=[name for name, *_ in WAYS])
def test_the_caller_s_queries_stay_and_the_answer_is_right(name, way, wanted, tmp_path):
    with torch.no_grad():
        asked = way(tmp_path)
        queries = QUERIES.clone()
        for _ in range(2):
            answer = asked(queries)
            assert torch.equal(queries, QUERIES), name
            torch.testing.assert_close(answer.detach(), wanted, msg=name)
            answer.detach().zero_()
            assert torch.equal(queries, QUERIES), name


class Itself(nn.Module):
    def forward(self, rows):
        return rows


def test_an_answer_that_is_the_input_itself_is_given_as_a_copy():
    rows = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    before = rows.clone()
    for answered in (
        TorchTarget(Itself()).logits,
        TorchTarget(Itself()).differentiable_logits,
        ScoredCallableTarget(lambda queries: queries).logits,
        CallableTarget(lambda queries: queries / queries.sum(1, keepdims=True)),
        GuardedModule(Itself(), Identity(), outputs="logits"),
        GuardedFunction(lambda queries: queries, Guard(Identity(), "logits")),
        lambda queries: (
            DefendedTarget(TorchTarget(Itself()), Identity()).trace(queries).clean_logits
        ),
    ):
        answered(rows).zero_()
        assert torch.equal(rows, before)


def test_a_recorded_answer_is_given_as_a_copy():
    recorded = RecordedTarget(QUERIES, CONFIDENCES)
    recorded(QUERIES).zero_()
    assert torch.equal(recorded(QUERIES), CONFIDENCES)


class Shifts(InPlace):
    def forward(self, images):
        return self.inner(images.sub_(0.25))


def test_a_gradient_passes_a_model_that_works_in_place():
    images = QUERIES.clone().requires_grad_()
    logits = TorchTarget(Shifts()).differentiable_logits(images)
    torch.testing.assert_close(logits.detach(), LINEAR(QUERIES - 0.25).detach())
    logits[:, 0].sum().backward()
    weights = LINEAR[1].weight[0].detach().reshape(SHAPE)
    torch.testing.assert_close(images.grad, weights.expand(6, *SHAPE))
    assert torch.equal(images.detach(), QUERIES)

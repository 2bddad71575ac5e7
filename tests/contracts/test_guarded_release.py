"""One suite for every way from a defense to a client or an attacker.

Each way gets a defense that breaks its promises, or that writes where it should not: it lets out
the right label or nothing, and no score in an error, an answer or a log.
"""

import asyncio
import contextlib
import io
import logging
import math
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from endpoints import OpenInferenceServer
from endpoints import running as upstream_running
from faulty_defenses import HARMLESS, REFUSED, Faulty, FaultyDraws
from guarded_servers import (
    PATH,
    SHAPE,
    digits_in,
    linear_model,
    serving,
)
from invoking import invoke
from oneway import defenses
from oneway.adapters import Guard, GuardedEndpoint, GuardedFunction, GuardedModule, GuardedSession
from oneway.adapters.ray import GuardRows, answer_together
from oneway.attacks.adversarial_training import put_through
from oneway.auditing import AuditTarget
from oneway.auditing.audit_target import ask
from oneway.data import no_progress
from oneway.defenses import ServableDefense
from oneway.defenses.adversarial_noise import AdversarialNoise
from oneway.defenses.base import ScoreDefense
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidTensorError, OnewayError
from oneway.options import injected
from oneway.playground.session import Session
from oneway.playground.settings import Setting
from oneway.releases import guarded_release, release
from oneway.targets import DefendedTarget, TorchTarget
from serving.test_proxy import proxied
from surrogates import small_inverter

GENERATOR = torch.Generator().manual_seed(8)
QUERIES = torch.rand(6, *SHAPE, generator=GENERATOR)
ARRAYS = QUERIES.numpy()
MODEL = linear_model()
TARGET = TorchTarget(MODEL)
LOGITS = TARGET.logits(QUERIES)
LABELS = LOGITS.argmax(-1)


def score(queries):
    return MODEL(torch.as_tensor(queries)).detach().numpy()


# Each way takes a defense, and gives a function that asks: the confidences that come out.


def through_guard(ask):
    return lambda defense: lambda: ask(Guard(defense, "logits", batch_size=4))


def session():
    def run(names, feed, _):
        return [score(feed["image"]) for _ in names]

    return SimpleNamespace(
        run=run,
        get_inputs=lambda: [SimpleNamespace(name="image")],
        get_outputs=lambda: [SimpleNamespace(name="y", type="tensor(float)", shape=[None, 3])],
    )


def sessions(defense):
    guarded = GuardedSession(session(), defense, output_name="y", outputs="logits")
    return lambda: guarded.run(None, {"image": ARRAYS})[0]


def classifiers(defense):
    base = pytest.importorskip("sklearn.base")
    from oneway.adapters.scikit_learn import GuardedClassifier

    class Fitted(base.ClassifierMixin, base.BaseEstimator):
        classes_ = np.arange(3)

        def predict_proba(self, queries):
            return torch.from_numpy(score(queries)).softmax(-1).numpy()

        def predict(self, queries):
            return self.predict_proba(queries).argmax(1)

    guarded = GuardedClassifier.of_fitted(Fitted(), defense)
    return lambda: guarded.predict_proba(ARRAYS)


def pyfuncs(defense):
    kind = pytest.importorskip("oneway.adapters.mlflow").GuardedPyfunc
    guarded = kind(lambda _: score, lambda _: Guard(defense, "logits"))
    guarded.load_context(SimpleNamespace(artifacts={}))
    return lambda: guarded.predict(None, ARRAYS)


def deployments(defense):
    async def model(queries):
        return score(queries)

    def ask():
        (answer,) = asyncio.run(answer_together([ARRAYS], model, Guard(defense, "logits")))
        if isinstance(answer, OnewayError):
            raise answer
        return answer

    return ask


def rows(defense):
    columns = ("logits", "image" if defense.requires_input else None, (), "confidences")
    guard_rows = GuardRows(lambda: Guard(defense, "logits"), *columns)
    batch = {"logits": score(ARRAYS), "image": ARRAYS}
    return lambda: guard_rows(batch)["confidences"]


def targets(ask):
    return lambda defense: lambda: ask(DefendedTarget(TARGET, defense, batch_size=4))


def audited(defense):
    many = torch.rand(250, *SHAPE, generator=torch.Generator().manual_seed(9))
    test = torch.cat([QUERIES, many[:50]])
    target = AuditTarget(TARGET, auxiliary=many[50:].repeat(2, 1, 1, 1)[:200], test=test)

    def answered():
        answers = ask(target, defense)
        assert answers.label_changes == 0
        return answers.trace.released[:6]

    return answered


class Store:
    def tensors(self, _, __, compute):
        return compute()


def playground(ask):
    """A session that has trained nothing, with one defense at every setting."""

    def way(defense):
        session = object.__new__(Session)
        session.target, session.defense = TARGET, lambda _: defense
        session._queries = {"test": (QUERIES, LOGITS)}
        session._surrogate_hash, session._codebooks, session._store = "", {}, Store()
        return lambda: ask(session)

    return way


SETTING = Setting.of("rounding", {"decimals": 1})

IN_PROCESS = {
    "guarded_release": lambda defense: (
        lambda: guarded_release(defense, LOGITS, QUERIES).confidences
    ),
    "DefendedTarget": targets(lambda target: target(QUERIES)),
    "DefendedTarget.trace": targets(lambda target: target.trace(QUERIES).released),
    "DefendedTarget.trace, defended logits": targets(
        lambda target: release(target.trace(QUERIES).defended_logits)
    ),
    "DefendedTarget.repeated": targets(lambda target: target.repeated(QUERIES, 3)[2]),
    "DefendedTarget.differentiable_logits": targets(
        lambda target: target.differentiable_logits(QUERIES).softmax(-1).detach()
    ),
    "Guard, logits": through_guard(lambda guard: guard(score(ARRAYS), ARRAYS)),
    "Guard, tensors": through_guard(lambda guard: guard(LOGITS, QUERIES)),
    "Guard, confidences": lambda defense: (
        lambda: Guard(defense, "confidences")(LOGITS.softmax(-1), QUERIES)
    ),
    "GuardedFunction": through_guard(lambda guard: GuardedFunction(score, guard)(ARRAYS)),
    "GuardedModule": lambda defense: (
        lambda: GuardedModule(MODEL, defense, outputs="logits")(QUERIES)
    ),
    "GuardedSession": sessions,
    "GuardedClassifier": classifiers,
    "GuardedPyfunc": pyfuncs,
    "Ray Serve": deployments,
    "Ray Data": rows,
    "copies of an attacker": lambda defense: (
        lambda: put_through([defense], LOGITS.softmax(-1), QUERIES, every=1)
    ),
    "an audit": audited,
    "the playground's page": playground(lambda page: page.trace(SETTING, QUERIES).released),
    "the playground's attackers": playground(
        lambda page: page._releases(SETTING, "test", no_progress)
    ),
}


@contextlib.contextmanager
def in_process(way, defense):
    """Give a function that asks: the confidences or None, and all that was said."""
    answered = way(defense)

    def asked():
        log = io.StringIO()
        handler = logging.StreamHandler(log)
        logging.getLogger().addHandler(handler)
        try:
            return torch.as_tensor(answered()), log.getvalue()
        except OnewayError as error:
            return None, log.getvalue() + everything_in(error)
        finally:
            logging.getLogger().removeHandler(handler)

    yield asked


def everything_in(error):
    """Return the text of an error and of all errors behind it, shown or not."""
    said = []
    while error is not None:
        said += traceback.format_exception(error, chain=False)
        error = error.__cause__ or error.__context__
    return "".join(said)


@contextlib.contextmanager
def endpoint(defense):
    pytest.importorskip("httpx")
    with upstream_running(OpenInferenceServer()) as upstream:
        guarded = GuardedEndpoint(f"{upstream.address}{PATH}", defense, output_name="probabilities")
        with in_process(lambda _: lambda: guarded(QUERIES), defense) as asked:
            yield asked


def over_http(server):
    def asked():
        answer = server.infer(QUERIES)
        said = server.everything(answer)
        if answer.status_code != 200:
            assert answer.status_code == 503
            return None, said
        (output,) = answer.json()["outputs"]
        return torch.tensor(output["data"]).reshape(output["shape"]), said

    return asked


@contextlib.contextmanager
def served(defense):
    with serving(ServableDefense("faulty", "1", defense)) as server:
        yield over_http(server)


@contextlib.contextmanager
def through_proxy(defense):
    guard = ServableDefense("faulty", "1", defense)
    with proxied(OpenInferenceServer(), guard=guard) as (server, _):
        yield over_http(server)


@contextlib.contextmanager
def command(defense, tmp_path):
    """`oneway defend`, with this defense under the name of another."""
    np.savez(tmp_path / "scores.npz", logits=LOGITS.numpy(), images=ARRAYS)
    arguments = ["defend", tmp_path / "scores.npz", "--defense", "rounding"]
    arguments += ["--option", "decimals=1", "--out", tmp_path / "out.npy"]

    def asked():
        (tmp_path / "out.npy").unlink(missing_ok=True)
        result = invoke(*arguments)
        said = result.output + (everything_in(result.exception) if result.exception else "")
        if result.exit_code:
            assert not (tmp_path / "out.npy").exists()
            return None, said
        assert "0 labels changed" in result.output
        return torch.from_numpy(np.load(tmp_path / "out.npy")), said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defenses, "build_defense", lambda *_, **__: defense)
        yield asked


WAYS = [*IN_PROCESS, "GuardedEndpoint", "a server", "a proxy", "oneway defend"]


@contextlib.contextmanager
def opened(way, defense, tmp_path):
    others = {"GuardedEndpoint": endpoint, "a server": served, "a proxy": through_proxy}
    if way in IN_PROCESS:
        context = in_process(IN_PROCESS[way], defense)
    elif way in others:
        context = others[way](defense)
    else:
        context = command(defense, tmp_path)
    with context as asked:
        yield asked


@pytest.mark.parametrize("way", WAYS)
def test_a_defense_that_breaks_its_promise_lets_nothing_out(way, tmp_path):
    defense = Faulty()
    with opened(way, defense, tmp_path) as asked:
        for name, fault in REFUSED.items():
            defense.fault = fault
            released, said = asked()
            assert released is None, name
            assert digits_in(said, QUERIES) == [], name
            assert "scores were" not in said.replace('f"scores were', ""), name
        defense.fault = None
        released, _ = asked()
    assert torch.equal(released.argmax(-1), LABELS)


@pytest.mark.parametrize("way", WAYS)
def test_a_defense_that_works_in_place_answers_as_one_that_does_not(way, tmp_path):
    before = QUERIES.clone(), LOGITS.clone()
    defense = Faulty()
    with opened(way, defense, tmp_path) as asked:
        for name, (fault, plain) in HARMLESS.items():
            defense.fault = fault
            released, _ = asked()
            defense.fault = plain
            expected, _ = asked()
            assert torch.equal(released.argmax(-1), LABELS), name
            assert torch.equal(released, expected), name
            assert not released.requires_grad, name
    assert torch.equal(QUERIES, before[0])
    assert torch.equal(LOGITS, before[1])


@pytest.mark.parametrize("way", IN_PROCESS)
def test_queries_that_a_defense_writes_to_are_copies(way, tmp_path):
    before = QUERIES.clone()
    with opened(way, Faulty(requires_input=True), tmp_path) as asked:
        released, said = asked()
    assert released is not None, said
    assert torch.equal(QUERIES, before)
    assert torch.equal(released.argmax(-1), LABELS)


@pytest.mark.parametrize("draws", [False, True])
def test_a_random_defense_is_held_to_its_promise_at_each_of_its_answers(draws):
    defense = FaultyDraws() if draws else Faulty(deterministic=False)
    target = DefendedTarget(TARGET, defense, batch_size=4)
    with in_process(lambda _: lambda: target.repeated(QUERIES, 3), defense) as asked:
        for name, fault in REFUSED.items():
            defense.fault = fault
            released, said = asked()
            assert released is None, name
            assert digits_in(said, QUERIES) == [], name
        for name, (fault, _) in HARMLESS.items():
            defense.fault = fault
            released, _ = asked()
            assert torch.equal(released.argmax(-1), LABELS.expand(3, -1)), name
    turns = iter([1, 1, 1, 1, -1, 1] if not draws else [])
    if not draws:
        defense.fault = lambda logits: next(turns) * logits
        assert asked()[0] is None


class QuotingInverter(torch.nn.Module):
    """A surrogate of the user's whose error quotes the scores, raised as one of oneway's."""

    def error_gradients(self, logits, images):  # noqa: ARG002
        raise InvalidTensorError(f"scores were {logits.tolist()}")

    def forward(self, confidences):
        return confidences


def test_an_error_of_oneway_that_has_another_behind_it_is_not_quoted():
    noise = AdversarialNoise(QuotingInverter(), step_size=0.1)
    asked = DefendedTarget(TARGET, noise)
    with in_process(lambda _: lambda: asked(QUERIES), noise) as ask_once:
        released, said = ask_once()
    assert released is None
    assert digits_in(said, QUERIES) == []


def test_an_error_of_oneway_s_own_checks_says_what_the_caller_can_mend():
    noise = AdversarialNoise(small_inverter(classes=3, image_shape=(1, 8, 8)), step_size=0.1)
    with pytest.raises(OnewayError, match=r"\[1, 8, 8\].*\(6, 1, 4, 4\)"):
        guarded_release(noise, LOGITS, QUERIES)
    with pytest.raises(InvalidTensorError, match="images must be given"):
        guarded_release(noise, LOGITS)
    with pytest.raises(InvalidTensorError, match="one per row of scores, 6, but got 5"):
        guarded_release(noise, LOGITS, QUERIES[:5])
    with pytest.raises(InvalidTensorError, match="finite"):
        guarded_release(noise, LOGITS * torch.nan, QUERIES)


def test_the_search_for_scores_finds_them_where_an_error_quotes_them():
    with pytest.raises(ValueError, match="scores were") as raised:
        Faulty(REFUSED["raises ValueError"])(LOGITS)
    assert digits_in(everything_in(raised.value), QUERIES) != []


class Flipping(ScoreDefense):
    """Writes into what it gets."""

    def transform(self, logits):
        return logits.copy_(logits.flip(-1))


class Transforming(ScoreDefense):
    """Answers with anything."""

    answer: object = injected("A function of the logits that returns the answer.")

    def transform(self, logits):
        return self.answer(logits)


def test_an_answer_that_is_no_logits_is_refused_by_its_shape_or_type():
    for answer, got in (
        (lambda logits: logits[:, 1:], r"shape \(6, 3\), but gave \(6, 2\)"),
        (lambda logits: logits[0], r"gave \(3,\)"),
        (lambda logits: logits.numpy(), "gave ndarray"),
    ):
        with pytest.raises(InvalidTensorError, match=got):
            Transforming(answer=answer)(LOGITS[:, :3])


class Overriding(Rounding):
    """Another ``__call__`` than that of its base."""

    def __call__(self, logits, images=None):
        return super().__call__(logits, images) * 2


def test_a_defense_of_the_base_class_that_works_in_place_keeps_labels():
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
    before = logits.clone()
    answer = guarded_release(Flipping(), logits)
    assert answer.label_changes == 0
    assert torch.equal(logits, before)
    assert torch.equal(answer.confidences, release(Flipping()(logits)))


def test_a_subclass_or_a_wrapper_is_asked_by_its_own_call():
    logits = torch.tensor([[3.0, 0.0, 1.0]])

    class Wrapper:
        inner = Rounding(decimals=2)

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, logits, images=None):
            return self.inner(logits, images) * 2

    for defense in (Overriding(decimals=2), Wrapper()):
        defended = guarded_release(defense, logits).defended_logits
        assert torch.equal(defended, defense(logits))
        assert not torch.equal(defended, Rounding(decimals=2)(logits))


def test_what_a_guarded_release_gets_is_checked_however_it_is_asked():
    for bad in ([[0.0, math.nan]], [[math.inf, 0.0]]):
        with pytest.raises(InvalidTensorError, match="finite"):
            guarded_release(Rounding(decimals=2), torch.tensor(bad))
        with pytest.raises(InvalidTensorError, match="finite"):
            Rounding(decimals=2)(torch.tensor(bad))
    drawn = torch.Generator().manual_seed(0)
    with pytest.raises(InvalidTensorError, match="classes that the defense was fitted to"):
        guarded_release(
            CodebookRelease.fit(torch.randn(400, 5, generator=drawn), generator=drawn),
            torch.zeros(2, 4),
        )

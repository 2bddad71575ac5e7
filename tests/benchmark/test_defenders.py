"""The defender's networks and an attacker's own: each trained once, and none of them shared."""

import dataclasses
import types
from collections import Counter

import pytest
import torch
from torch import nn

from attacks.spying import spied
from benchmark.small import (
    CLASSES,
    NOISE,
    NOISY,
    NONE,
    blobs,
    experiment,
    lasting,
    outcomes_of,
    records_of,
    spec_of,
)
from oneway.attacks import ATTACKS
from oneway.benchmark import count_stages
from oneway.defenses import load_module
from oneway.errors import InvalidOptionError, OverlappingSplitsError, UnknownNameError
from oneway.evaluation import defenders
from oneway.evaluation.defenders import surrogate_options
from oneway.evaluation.settings import ReleaseSpec, SurrogateSpec
from oneway.inversion import build_inverter
from oneway.metrics import distortion
from oneway.targets import DefendedTarget

HARD = ReleaseSpec("hardened", "adversarial-noise", NOISE, surrogate="min-max")
BETA, EPOCHS = {"beta": 0.01, "epochs": 1}, {"epochs": 1}
TRAINED = {
    "MID": ReleaseSpec("MID", "mutual-information", BETA),
    "MID kept": ReleaseSpec("MID kept", "mutual-information", BETA | {"keep_label": True}),
    "MID more": ReleaseSpec("MID more", "mutual-information", BETA | {"beta": 0.02}),
    "PPF": ReleaseSpec("PPF", "purification", EPOCHS),
    "PPF kept": ReleaseSpec("PPF kept", "purification", EPOCHS | {"keep_label": True}),
    "PPF more": ReleaseSpec("PPF more", "purification", EPOCHS | {"label_weight": 0.5}),
}
LEAN = tuple(
    dataclasses.replace(row, attackers=("label-only", "averaging")) for row in TRAINED.values()
)
SPEC = spec_of(*(NONE, NOISY, HARD, *LEAN), names=("label-only", "static", "adversarial-training"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run over all kinds of defenses; with what was fitted, given, answered and reported."""
    folder = tmp_path_factory.mktemp("store")
    fitted, given, traces, stages = [], {}, [], {}
    build_defense, trace = defenders.build_defense, DefendedTarget.trace

    def building(name, options, surrogate, **others):
        fitted.append((name, options, surrogate))
        return build_defense(name, options, surrogate, **others)

    def tracing(self, images):
        traces.append(trace(self, images))
        return traces[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defenders, "build_defense", building)
        patch.setattr(DefendedTarget, "trace", tracing)
        for name in ("adversarial-training", "averaging"):
            watch = given.setdefault(name, []).append
            patch.setitem(ATTACKS, name, spied(ATTACKS[name], watch))
        run = experiment(folder, SPEC, report=stages.__setitem__)
        outcomes = {outcome.record.release: outcome for outcome in run.run()}
    return types.SimpleNamespace(
        folder=folder,
        run=run,
        outcomes=outcomes,
        fitted=fitted,
        given=given,
        traces=traces,
        stages=stages,
    )


def stored(folder, kind):
    """Read what the store holds of a kind: networks with what is written beside them."""
    paths = sorted((folder / "networks").glob(f"{kind}-*.safetensors"))
    return [load_module(path, kind) for path in paths]


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values() if value.ndim])


def test_every_stage_that_was_announced_is_reported_to_its_end(whole):
    assert len(whole.stages) == count_stages(SPEC)
    assert set(whole.stages.values()) == {1.0}


def test_a_network_is_trained_once_for_releases_that_differ_after_it(whole):
    for kind, wanted in (
        ("mutual-information", (BETA, BETA | {"beta": 0.02})),
        ("purification", (EPOCHS, EPOCHS | {"label_weight": 0.5})),
    ):
        trained = [network.facts["spec"]["options"] for network in stored(whole.folder, kind)]
        assert len(trained) == 2
        assert all(options in trained for options in wanted)


def test_a_rerun_trains_nothing_and_releases_the_same_scores_though_they_are_random(
    whole, trainings
):
    again = outcomes_of(whole.folder, SPEC)
    assert trainings == Counter()
    for outcome in again:
        first = whole.outcomes[outcome.record.release]
        assert torch.equal(outcome.released, first.released)
        assert lasting(outcome.record) == lasting(first.record)


def test_a_random_release_is_the_same_whatever_stands_beside_it(whole):
    """And in whatever order: each release draws on a stream of its own."""
    rows = (LEAN[1], LEAN[0])
    again = outcomes_of(whole.folder, dataclasses.replace(SPEC, releases=(NONE, *rows)))
    for outcome in again[1:]:
        first = whole.outcomes[outcome.record.release]
        assert torch.equal(outcome.released, first.released)
        assert outcome.record.errors == first.record.errors
    scores = [outcome.released for outcome in again[1:]]
    assert not torch.equal(*scores)  # of one network, but with draws of their own


def test_who_asks_again_gets_other_draws_than_what_was_released(whole):
    mid = next(given for given in whole.given["averaging"] if given.random)
    answers = mid.query(mid.images, 2)
    for one, other in ((answers[0], answers[1]), (answers[0], mid.released)):
        same = (one == other).all(-1)
        assert same.float().mean() < 0.1
    # And the test queries' answers are not those to be had by asking again.
    images = whole.run.splits.test_images
    released = whole.outcomes["MID"].released
    assert (mid.query(images, 3) == released).all(-1).float().mean() < 0.1


def test_whoever_is_first_to_ask_again_does_not_get_what_was_released(whole, monkeypatch):
    first = []

    def ask(knowledge):
        first.append((knowledge.query(knowledge.images, 1)[0], knowledge.released))

    monkeypatch.setitem(ATTACKS, "averaging", spied(ATTACKS["averaging"], ask))
    outcomes_of(whole.folder, dataclasses.replace(SPEC, releases=(NONE, LEAN[0])))
    [(answers, released)] = first
    assert (answers == released).all(-1).float().mean() < 0.1


def test_an_attacker_who_repeats_applies_to_random_releases_alone(whole):
    for name in TRAINED:
        record = whole.outcomes[name].record
        assert record.random == name.startswith("MID")
        assert ("averaging" in record.errors) == record.random


def test_the_distortion_is_that_of_the_draw_that_was_released(whole):
    [clean] = [whole.outcomes["none"].released]
    for name, outcome in whole.outcomes.items():
        [trace] = [trace for trace in whole.traces if trace.released is outcome.released]
        moved = distortion(trace.clean_logits, trace.defended_logits, clean, outcome.released)
        assert outcome.record.logit_distortion == moved.logits
        torch.testing.assert_close(trace.defended_logits.softmax(-1), outcome.released)
        by_hand = (outcome.released.double() - clean.double()).abs().sum(-1)
        assert outcome.record.l1_mean == pytest.approx(float(by_hand.mean()), rel=1e-4, abs=1e-7)
        assert (moved.logits > 0) == (name != "none")


def test_only_releases_that_promise_it_keep_every_label(whole):
    clean = whole.outcomes["none"].released.argmax(-1)
    for name, outcome in whole.outcomes.items():
        record = outcome.record
        assert record.label_changes == int((outcome.released.argmax(-1) != clean).sum())
        assert record.keeps_label == (name in ("none", "noise", "hardened") or "kept" in name)
        if record.keeps_label:
            assert record.label_changes == 0


def test_training_times_and_facts_are_of_what_the_defense_needed(whole):
    records = {name: outcome.record for name, outcome in whole.outcomes.items()}
    assert records["none"].training_seconds == 0
    assert all(record.training_seconds > 0 for name, record in records.items() if name != "none")
    assert records["MID"].training_seconds == records["MID kept"].training_seconds
    assert set(records["MID"].training) == {"divergence_nats"}
    assert set(records["PPF"].training) == {"distance", "cross_entropy", "inversion_error"}


def by_role(folder):
    networks = {}
    for network in stored(folder, "inverter"):
        spec = network.facts["spec"]
        networks[spec["role"], spec["perturbed"] is not None] = network
    return networks


def test_there_are_four_surrogates_and_no_two_are_alike(whole):
    """The defender's and the attacker's own, each plain and trained against noise."""
    roles = by_role(whole.folder)
    surrogates = [
        roles[role, hardened]
        for role in ("surrogate", "attacker's surrogate")
        for hardened in (False, True)
    ]
    shape = surrogates[0].module.architecture
    assert all(surrogate.module.architecture == shape for surrogate in surrogates)
    for place, one in enumerate(surrogates):
        for other in surrogates[place + 1 :]:
            assert not torch.allclose(weights(one.module), weights(other.module), atol=1e-3)


def same_weights(one, other):
    return torch.equal(weights(one), weights(other))


def test_the_defender_uses_its_own_surrogate_and_each_attackers_copy_another(whole):
    roles = by_role(whole.folder)
    noise = [call for call in whole.fitted if call[1].get("steps") == NOISE["steps"]]
    for row, hardened in ((NOISY, False), (HARD, True)):
        own = roles["surrogate", hardened].module
        theirs = roles["attacker's surrogate", hardened].module
        released = [options for _, options, inverter in noise if same_weights(inverter, own)]
        copied = [options for _, options, inverter in noise if same_weights(inverter, theirs)]
        # Once more for attackers who ask again, and for matching: each has draws of its own.
        assert released == [row.options] * 3
        assert copied == [
            row.options | {"step_size": factor * row.options["step_size"]}
            for factor in SPEC.attackers.step_factors
        ]


def test_attackers_are_given_copies_where_there_is_a_step_size_to_vary(whole):
    counts = [len(given.simulated_defenses) for given in whole.given["adversarial-training"]]
    assert counts == [len(SPEC.attackers.step_factors)] * 2
    assert all(given.simulated_defenses == () for given in whole.given["averaging"])


def test_copies_answer_otherwise_than_the_defense_that_they_copy(whole):
    given = whole.given["adversarial-training"][0]
    logits = given.clean.log()
    for copy in given.simulated_defenses:
        answer = copy(logits, given.images).softmax(-1)
        assert (answer - given.released).abs().max() > 1e-3


def test_a_hardened_surrogate_is_shown_noise_against_itself_as_long_as_the_defenses(whole):
    steps = SPEC.surrogate.adversarial_steps
    assert steps != NOISE["steps"]  # by which the noise of its training is known here
    shown = [options for _, options, _ in whole.fitted if options.get("steps") == steps]
    reach = NOISE["step_size"] * NOISE["steps"]
    factors = {round(options["step_size"] * steps / reach, 9) for options in shown}
    assert factors == set(SPEC.attackers.step_factors)
    assert all(options["budget"] == NOISE["budget"] for options in shown)


def test_a_hardened_surrogate_depends_on_the_noise_and_a_plain_one_does_not(tmp_path, trainings):
    small = spec_of(NONE, NOISY, HARD, names=("label-only", "static"))
    records_of(tmp_path, small)
    trainings.clear()
    longer = NOISE | {"step_size": 0.25}
    rows = [dataclasses.replace(row, options=longer) for row in (NOISY, HARD)]
    records_of(tmp_path, dataclasses.replace(small, releases=(NONE, *rows)))
    assert len(stored(tmp_path, "inverter")) > 3
    surrogates = [n.facts["spec"] for n in stored(tmp_path, "inverter")]
    roles = Counter(spec["role"] for spec in surrogates)
    assert roles["surrogate"] == 3
    assert trainings["inverter"] == 1


def test_an_auxiliary_set_that_overlaps_the_private_one_is_refused_before_any_training(
    tmp_path, trainings
):
    with pytest.raises(OverlappingSplitsError, match=r"splits share \d+ images"):
        experiment(tmp_path, spec_of(*(NONE, NOISY)), auxiliary_dataset=blobs())
    assert trainings == Counter()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_auxiliary_images_come_from_their_own_set_and_move_no_other_split(tmp_path):
    spec = spec_of(NONE)
    other = blobs(rows=150, seed=9)
    mixed = experiment(tmp_path, spec, auxiliary_dataset=other)
    alone = experiment(tmp_path, spec)
    assert torch.equal(mixed.splits.private_images, alone.splits.private_images)
    assert torch.equal(mixed.splits.test_images, alone.splits.test_images)
    pool = {image.tobytes() for image in other.images}
    drawn = (255 * mixed.splits.auxiliary_images[:, 0]).round().to(torch.uint8).numpy()
    assert len(drawn) == 60
    assert {image.tobytes() for image in drawn} <= pool
    assert mixed.splits.num_classes == CLASSES


def test_a_surrogate_without_hidden_layers_is_refused_before_any_training(tmp_path):
    with pytest.raises(InvalidOptionError, match=r"must be below 2.*16x16 images, but is 2"):
        experiment(tmp_path, spec_of(NONE, NOISY, removed=2))
    # Where no defense takes a surrogate, none is refused.
    experiment(tmp_path, spec_of(NONE, removed=2))


def test_a_surrogate_lacks_its_first_or_its_last_layers():
    """The two readings of the paper's "remove two hidden layers"."""
    shape = (1, 64, 64)
    first = surrogate_options(SurrogateSpec(width=16), shape)
    last = surrogate_options(SurrogateSpec(width=16, removed="last"), shape)
    with torch.device("meta"):
        whole, *others = (
            build_inverter(10, shape, **options) for options in ({"width": 16}, first, last)
        )
    sizes = [[*network.layers.modules()][1:] for network in (whole, *others)]
    counted = [
        [layer.num_features for layer in layers if isinstance(layer, nn.BatchNorm2d)]
        for layers in sizes
    ]
    assert counted == [[128, 64, 32, 16], [32, 16], [128, 64]]
    # All hidden layers of records are alike.
    options = [
        surrogate_options(SurrogateSpec(removed=end, hidden_layers_removed=1), (9,))
        for end in ("first", "last")
    ]
    assert options[0] == options[1]
    with pytest.raises(UnknownNameError, match=r"removed 'lst'.*mean 'last'"):
        SurrogateSpec(removed="lst")

"""Whole experiments on generated images: the controls in small, and nothing done twice."""

import dataclasses
import functools
import types
from collections import Counter

import numpy as np
import pytest
import torch

from attacks.spying import spied
from benchmark.small import (
    AGAIN,
    CLASSES,
    LABEL,
    NOISE,
    NOISY,
    NONE,
    SMALL,
    PlannedError,
    experiment,
    interrupting,
    lasting,
    outcomes_of,
    records_of,
    spec_of,
)
from oneway.attacks import ATTACKS, inversion_attacks
from oneway.benchmark import count_stages, runner
from oneway.benchmark.runner import trained_target
from oneway.benchmark.spec import cell_key
from oneway.data import check_disjoint, no_progress
from oneway.defenses import DEFENSES
from oneway.defenses.base import ScoreDefense
from oneway.defenses.codebook import CodebookRelease
from oneway.errors import InvalidOptionError
from oneway.evaluation import ReleaseSpec, attackers, read_records, write_records
from oneway.evaluation.attackers import PriorTrainer
from oneway.evaluation.records import unpacked, weights_hash
from oneway.evaluation.store import read_json_lines
from oneway.inversion import AutoencoderSettings
from trainings import count_trainings

AUXILIARY, EPOCHS = 160, 10
KEYS = {
    *("schema", "experiment", "preset", "cell", "release", "defense", "options", "seed"),
    *("effective_options", "auxiliary", "queries", "accuracy", "label_changes", "keeps_label"),
    *("random", "logit_distortion", "l1_mean", "l1_p99", "l1_max", "training", "spec", "errors"),
    *("reconstructors", "reconstructor_errors", "errors_per_query", "baselines", "strongest"),
    *("adaptive_error", "closed_gap", "closed_gap_least_confident", "flags", "training_seconds"),
    *("milliseconds_single_query", "milliseconds_per_query_batched", "environment", "provenance"),
    *("attack_failed", "closed_gap_at_least", "convergence", "detection_limit", "matching"),
    "numerics",
}
ALWAYS = {"label-only", "static", "retrained"}
"""Attacks that apply to every release; adversarial training needs a surrogate to copy, and
averaging a random release."""


class Moved(ScoreDefense):
    """Hides nothing: classes permuted, scaled and shifted. Anyone who retrains undoes it."""

    keeps_label = False

    def transform(self, logits):
        return 0.5 * logits.roll(1, -1) + torch.arange(CLASSES, dtype=logits.dtype)


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    """One experiment that is long enough to tell a release that leaks from one that does not."""
    stages = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFENSES, "moved", Moved)
        spec = spec_of(
            *(NONE, AGAIN, ReleaseSpec("moved", "moved"), NOISY, LABEL),
            epochs=EPOCHS,
            width=8,
            images=(120, AUXILIARY, 100),
            target_epochs=6,
        )
        folder = tmp_path_factory.mktemp("controls")
        done = experiment(folder, spec, report=stages.__setitem__)
        outcomes = list(done.run())
    records = {outcome.record.release: outcome.record for outcome in outcomes}
    return types.SimpleNamespace(
        spec=spec, done=done, outcomes=outcomes, stages=stages, records=records
    )


def test_clean_scores_tell_much_that_the_label_does_not(controls):
    """Else the controls below would hold for any defense."""
    baselines = controls.records["none"].baselines
    assert baselines.clean < 0.5 * baselines.label < 0.5 * baselines.prior


def test_control_no_defense_leaves_the_gap_open(controls):
    for name in ("none", "again"):
        assert controls.records[name].closed_gap == 0
        assert controls.records[name].closed_gap_least_confident == 0


def test_control_label_only_closes_the_gap_and_that_of_the_tail(controls):
    assert 0.9 <= controls.records["label"].closed_gap <= 1.1
    assert 0.9 <= controls.records["label"].closed_gap_least_confident <= 1.1


def test_a_surrogate_without_hidden_layers_is_refused_before_any_training(tmp_path):
    spec = spec_of(NONE, NOISY)
    surrogate = dataclasses.replace(spec.surrogate, hidden_layers_removed=2)
    with pytest.raises(InvalidOptionError, match=r"must be below 2.*16x16 images, but is 2"):
        experiment(tmp_path, dataclasses.replace(spec, surrogate=surrogate))
    # Where no defense takes a surrogate, none is refused.
    experiment(tmp_path, dataclasses.replace(spec_of(NONE), surrogate=surrogate))


def test_control_scores_that_were_only_moved_are_broken_by_retraining(controls):
    record = controls.records["moved"]
    assert record.closed_gap < 0.3  # of a release that hid everything it would be 1
    assert record.strongest == "retrained"
    # Who never saw the new scores is misled: so it is the retraining that breaks them.
    assert record.errors["static"] > record.baselines.label


def test_only_the_defense_that_does_not_promise_to_keep_labels_changes_them(controls):
    label_changes = {name: record.label_changes for name, record in controls.records.items()}
    assert label_changes.pop("moved") > 0
    assert set(label_changes.values()) == {0}


def test_defenses_that_keep_labels_keep_the_accuracy(controls):
    accuracies = {name: record.accuracy for name, record in controls.records.items()}
    assert accuracies.pop("moved") < 0.9 < accuracies["none"]
    assert len(set(accuracies.values())) == 1


def test_only_what_changes_scores_distorts_them(controls):
    for name, record in controls.records.items():
        moved = (record.logit_distortion, record.l1_mean, record.l1_p99, record.l1_max)
        assert all(value == 0 for value in moved) == (name in ("none", "again"))
    # A budget of 4 nats at the most distorted class of three.
    assert 0 < controls.records["noise"].logit_distortion <= 4


def test_baselines_are_those_of_the_undefended_release_for_every_release(controls):
    undefended = controls.records["none"]
    for record in controls.records.values():
        assert record.baselines == undefended.baselines
    assert undefended.baselines.clean == min(undefended.errors.values())
    assert undefended.baselines.label == undefended.errors["label-only"]
    splits = controls.done.splits
    mean = splits.auxiliary_images.double().mean(0)
    prior = (splits.test_images.double() - mean).square().mean()
    assert undefended.baselines.prior == pytest.approx(float(prior), rel=1e-5)


def test_every_stage_that_was_announced_is_reported_to_its_end(controls):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFENSES, "moved", Moved)
        assert len(controls.stages) == count_stages(controls.spec)
    assert set(controls.stages.values()) == {1.0}


def test_an_attacker_who_trains_nothing_is_no_stage():
    more = dataclasses.replace(NONE, attackers=(*ALWAYS, "class-representative"))
    assert count_stages(spec_of(more)) == count_stages(spec_of(NONE))


def test_a_generative_attacker_reports_the_training_of_its_prior(tmp_path, monkeypatch):
    quick = functools.partial(PriorTrainer, settings=AutoencoderSettings(epochs=2))
    monkeypatch.setattr(attackers, "PriorTrainer", quick)
    names, stages = (*ALWAYS, "generative", "latent-search"), {}
    spec = spec_of(dataclasses.replace(NONE, attackers=names))
    [outcome] = experiment(tmp_path, spec, report=stages.__setitem__).run()
    assert len(stages) == count_stages(spec)
    assert set(stages.values()) == {1.0}
    assert set(outcome.record.errors) == set(names)


def test_records_say_what_was_run_and_are_read_back_as_they_were(controls, tmp_path):
    records = list(controls.records.values())
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records
    for values in read_json_lines(tmp_path / "records.jsonl"):
        assert values.keys() == KEYS
    for record, release in zip(records, controls.spec.releases, strict=True):
        applied = ALWAYS | ({"adversarial-training"} if release is NOISY else set())
        for key in ("errors", "reconstructors", "reconstructor_errors", "errors_per_query"):
            assert getattr(record, key).keys() == applied
        assert (record.release, record.defense) == (release.name, release.defense)
        assert record.cell == cell_key(controls.spec, release)
        assert (record.auxiliary, record.queries) == (AUXILIARY, 100)
        assert record.spec["data"] == vars(controls.spec.data)
        assert (record.seed, record.preset) == (0, "")
        assert (record.random, record.keeps_label) == (False, release.name != "moved")
    assert controls.records["noise"].options == NOISE | {"norm": "inf"}  # JSON has no infinity


def test_queries_are_identified_in_each_release_as_far_as_it_tells_them_apart(controls):
    labels = controls.outcomes[-1].released.argmax(-1)
    by_label = len(set(labels.tolist())) / len(labels)
    for name, record in controls.records.items():
        assert list(record.matching) == ["true inputs", "noisy copies"], name
        for result in record.matching.values():
            assert (result.gallery, result.chance, result.repeats) == (100, 0.01, 1)
        true = record.matching["true inputs"]
        assert true.clean_rank_1 == 1
        assert true.label_rank_1 == pytest.approx(by_label)
        # The paper's noise, too, answers each query with a vector of its own.
        assert true.rank_1 == (pytest.approx(by_label) if name == "label" else 1), name


def test_a_record_names_the_data_and_the_model_that_it_is_of(controls):
    """Both are the same for all releases: what a record is of does not follow its defense."""
    network = target_of(controls.done).module
    for record in controls.records.values():
        assert record.provenance.data == controls.done.data
        assert record.provenance.model == weights_hash(network)


def test_the_gallery_shows_one_query_of_each_class_and_what_attackers_made_of_it(controls):
    splits = controls.done.splits
    for outcome in controls.outcomes:
        rows = controls.done.gallery(outcome)
        assert list(rows) == ["truth", *outcome.results]
        for images in rows.values():
            assert images.shape == (CLASSES, 16, 16)
            assert images.min() >= 0
            assert images.max() <= 1
        chosen = [
            int((splits.test_images[:, 0] == torch.from_numpy(image)).flatten(1).all(-1).nonzero())
            for image in rows["truth"]
        ]
        assert splits.test_labels[chosen].tolist() == list(range(CLASSES))
        for name, result in outcome.results.items():
            wrong = np.square(rows[name].astype(np.float64) - rows["truth"]).mean((1, 2))
            np.testing.assert_allclose(wrong, result.errors[chosen], rtol=1e-5)


def test_errors_per_query_average_to_the_error_that_is_printed(controls):
    for outcome in controls.outcomes:
        record = outcome.record
        for name, text in record.errors_per_query.items():
            errors = unpacked(text)
            assert errors.shape == (100,)
            np.testing.assert_allclose(errors, outcome.results[name].errors, rtol=2**-10, atol=1e-7)
            assert errors.astype(float).mean() == pytest.approx(record.errors[name], rel=1e-3)


def test_the_candidate_that_was_chosen_made_the_error(controls):
    for record in controls.records.values():
        for name, errors in record.reconstructor_errors.items():
            assert errors[record.reconstructors[name]] == record.errors[name]


def target_of(experiment):
    return trained_target(experiment.spec, experiment.splits, experiment.store, no_progress)


def test_the_distortion_is_that_of_the_scores_that_were_released(controls):
    splits, target = controls.done.splits, target_of(controls.done)
    clean = target(splits.test_images)
    for outcome in controls.outcomes:
        moved = (outcome.released - clean).abs().sum(-1)
        assert outcome.record.l1_mean == pytest.approx(float(moved.mean()), rel=1e-5, abs=1e-7)
        assert outcome.record.l1_max == pytest.approx(float(moved.max()), rel=1e-5, abs=1e-7)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """One short experiment that others below repeat, change, or cut off."""
    folder = tmp_path_factory.mktemp("first")
    spec = spec_of(*SMALL, epochs=2, target_epochs=2)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        trained = count_trainings(patch)
        records = records_of(folder, spec)
    return types.SimpleNamespace(folder=folder, spec=spec, records=records, trained=trained)


def test_a_rerun_trains_nothing_and_gives_the_same_numbers(first, trainings):
    assert first.trained["target"] == 1
    assert first.trained["inverter"] > 3
    again = records_of(first.folder, first.spec)
    assert trainings == Counter()
    assert list(map(lasting, again)) == list(map(lasting, first.records))


def test_another_seed_gives_other_splits_and_other_networks(first, trainings):
    spec = dataclasses.replace(first.spec, seed=1, releases=(NONE,))
    [other] = records_of(first.folder, spec)
    # All that it takes: the static decoder, which is the retrained one here, and the label's.
    assert trainings == Counter(target=1, inverter=2)
    assert other.errors != first.records[0].errors
    assert other.provenance.data != first.records[0].provenance.data
    assert other.provenance.model != first.records[0].provenance.model


def test_a_release_that_is_added_moves_no_other_and_trains_only_what_is_new(tmp_path, trainings):
    few = records_of(tmp_path, spec_of(NONE, NOISY))
    trainings.clear()
    more = records_of(tmp_path, spec_of(NONE, LABEL, AGAIN, NOISY))
    # The label's retrained attacker; its label-only one has the labels that none's has.
    assert trainings == Counter(inverter=1)
    for before, after in zip(few, (more[0], more[3]), strict=True):
        assert {**lasting(before), "spec": None} == {**lasting(after), "spec": None}


def test_finished_releases_are_left_out_and_move_no_other(first, tmp_path):
    whole = {record.release: lasting(record) for record in first.records}
    for finished in ({"none", "label"}, {"noise"}):
        run = experiment(tmp_path, first.spec).run(finished)
        rest = {outcome.record.release: lasting(outcome.record) for outcome in run}
        assert rest == {name: record for name, record in whole.items() if name not in finished}


def test_outcomes_come_one_by_one_before_the_next_is_begun(first):
    stages = []
    run = experiment(first.folder, first.spec, report=lambda now, _: stages.append(now)).run()
    assert next(run).record.release == "none"
    assert not [stage for stage in stages if "noise" in stage or stage.startswith("label:")]


def test_a_run_that_is_interrupted_again_and_again_goes_on_where_it_was(first, tmp_path, trainings):
    """To the same numbers in the end, whatever the caller's own random stream does meanwhile."""
    torch.manual_seed(1)
    done = []
    for stage, share in (
        ("train the target", 0.5),
        ("defend: noise", 0.0),
        ("noise: retrained, standardized 4", 0.5),
    ):
        with pytest.raises(PlannedError):
            records_of(tmp_path, first.spec, report=interrupting(stage, share))
        done.append(trainings.total())
    assert done[0] == 0 < done[1] <= done[2] < first.trained.total()
    records = records_of(tmp_path, first.spec)
    assert trainings == first.trained  # nothing was done twice
    assert list(map(lasting, records)) == list(map(lasting, first.records))


@pytest.fixture
def seen(monkeypatch):
    """Keep what the target, the inverters and the attackers are trained on or given."""
    kept = {"target": [], "inverter": [], "attack": []}

    def spy(module, name, role, place):
        original = getattr(module, name)

        def spied(*args, **options):
            kept[role].append(args[place])
            return original(*args, **options)

        monkeypatch.setattr(module, name, spied)

    spy(runner, "train_target", "target", 1)
    spy(attackers, "train_inverter", "inverter", 2)
    for name, attack in inversion_attacks().items():
        monkeypatch.setitem(ATTACKS, name, spied(attack, kept["attack"].append))
    return kept


def test_nobody_but_the_target_trains_on_private_images_and_nobody_on_test_images(tmp_path, seen):
    spec = spec_of(*SMALL)
    run = experiment(tmp_path, spec)
    assert len(list(run.run())) == len(SMALL)
    assert torch.equal(torch.cat(seen["target"]), run.splits.private_images)
    assert len(seen["attack"]) == sum(len(spec.attackers_of(row)) for row in SMALL)
    for images in seen["inverter"] + [given.images for given in seen["attack"]]:
        assert torch.equal(images, run.splits.auxiliary_images)
    check_disjoint(
        {
            "private": run.splits.private_images,
            "auxiliary": run.splits.auxiliary_images,
            "test": run.splits.test_images,
        }
    )


def test_a_release_is_fitted_to_the_queries_that_were_kept_and_no_attacker_has_them(
    tmp_path, seen, monkeypatch
):
    given, train = [], CodebookRelease.train

    @functools.wraps(train)  # its options are read off it
    def spied(training_data, **options):
        given.append(training_data)
        return train(training_data, **options)

    monkeypatch.setattr(CodebookRelease, "train", spied)
    book = ReleaseSpec("book", "codebook", {"min_members": 5, "held_out": 0.0})
    plain = spec_of(NONE, book)
    # Enough for a certificate, too.
    plain = dataclasses.replace(plain, data=dataclasses.replace(plain.data, auxiliary=90))
    kept = dataclasses.replace(plain, data=dataclasses.replace(plain.data, calibration=90))
    fitted = []
    for spec in (plain, kept):
        run = experiment(tmp_path, spec)
        # What was fitted to other queries is another network.
        fitted.append([outcome.record.training for outcome in run.run()][-1])
    auxiliary, own = given
    assert auxiliary.calibration_images is None
    assert torch.equal(own.calibration_images, run.splits.calibration_images)
    assert own.calibration_logits.shape == (90, CLASSES)
    assert fitted[0] != fitted[1]
    for observed in seen["attack"]:
        check_disjoint({"calibration": own.calibration_images, "observed": observed.images})


def test_attackers_get_no_network_and_no_image_but_their_own(tmp_path, seen):
    """The query is the one way to the target: it takes images and gives confidences alone."""
    mid = ReleaseSpec("MID", "mutual-information", {"beta": 0.01, "epochs": 1})
    run = experiment(tmp_path, spec_of(NONE, NOISY, mid))
    list(run.run())
    for given in seen["attack"]:
        values = {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
        assert set(values) == {
            *("images", "clean", "released", "held_out"),
            *("query", "random", "repeats", "simulated_defenses", "differentiable_logits"),
            *("candidates", "train_prior", "report", "keep"),
        }
        # Gradients are for attackers who are said to have the model, priors for those who ask.
        assert given.differentiable_logits is given.train_prior is None
        assert len(given.images) == len(given.clean) == len(given.released) == 60
        assert not any(isinstance(value, torch.nn.Module) for value in values.values())
        answers = given.query(run.splits.test_images[:4], 2)
        assert answers.shape == (2, 4, CLASSES)
        assert not answers.requires_grad
        torch.testing.assert_close(answers.sum(-1), torch.ones(2, 4))


def test_attackers_see_what_was_released_and_what_it_was_before(tmp_path, monkeypatch):
    seen = []

    monkeypatch.setitem(ATTACKS, "retrained", spied(ATTACKS["retrained"], seen.append))
    outcomes = outcomes_of(tmp_path, spec_of(NONE, LABEL))
    undefended, label = seen
    assert torch.equal(undefended.clean, undefended.released)
    assert torch.equal(label.clean, undefended.clean)
    assert torch.equal(label.released.argmax(-1), undefended.clean.argmax(-1))
    assert len(label.released.unique(dim=0)) <= CLASSES
    assert len(outcomes[0].released.unique(dim=0)) > CLASSES
    assert len(outcomes[1].released.unique(dim=0)) <= CLASSES


def test_each_release_is_attacked_by_those_it_names_or_else_by_all(tmp_path):
    some = ReleaseSpec("some", "label-only", attackers=("retrained", "label-only"))
    none = ReleaseSpec("none", "none", attackers=("static", "label-only"))
    spec = spec_of(none, some, LABEL, names=("label-only", "static"))
    outcomes = outcomes_of(tmp_path, spec)
    assert [list(outcome.results) for outcome in outcomes] == [
        ["label-only", "static"],  # in the order of the registry
        ["label-only", "retrained"],
        ["label-only", "static"],
    ]


def test_times_are_per_query(tmp_path, monkeypatch):
    """With a clock that moves one second at each look, a batch takes one second."""
    ticks = iter(range(10**6))
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("oneway.evaluation.timing.time", clock)
    [record] = records_of(tmp_path, spec_of(NONE))
    assert record.milliseconds_single_query == 1000
    assert record.milliseconds_per_query_batched == pytest.approx(1000 / 45)

"""Experiment specs: every mistake is found before any work, and named with its remedy."""

import dataclasses
import tomllib
from importlib import resources

import pytest

from laws import looped
from oneway.attacks import inversion_attacks
from oneway.benchmark import bundled_spec, count_stages, load_spec
from oneway.benchmark.spec import DataSpec, ExperimentSpec
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, UnknownNameError
from oneway.evaluation.settings import ReleaseSpec, sketch_defense
from oneway.inversion import YANG_SETTINGS, TrainingSettings
from oneway.targets import TargetTrainingSettings

DEMOS = ("demo-digits", "demo-mnist")
TABLES = tuple(
    f"{table}-{kind}" for table in ("table1", "table2", "background") for kind in ("mnist", "faces")
)
PRESETS = ("cpu", "paper")
YANG_TARGET_SETTINGS = TargetTrainingSettings(
    epochs=100, learning_rate=2e-4, batch_size=128, schedule="constant"
)
FACES = ("facescrub", "celeba", 64)
"""The paper's, with its side."""

MINIMAL = """
name = "small"

[data]
name = "digits"
private = 10
auxiliary = 20
test = 30

[[releases]]
name = "none"
defense = "none"
"""

FULL = """
name = "full"
seed = 7

[data]
name = "mnist"
private = 10
auxiliary = 20
test = 30

[target]
width = 4
blocks = 2
[target.training]
epochs = 3
learning_rate = 1
batch_size = 5

[surrogate]
width = 6
hidden_layers_removed = 1
input_transform = "standardized"
[surrogate.training]
averaging = 0.5

[attackers]
names = ["label-only", "static"]
input_transforms = ["faithful"]
widths = [4, 8]
held_out = 0.25
[attackers.training]
epochs = 9
patience = 2

[[releases]]
name = "none"
defense = "none"

[[releases]]
name = "noise"
defense = "adversarial-noise"
options = { step_size = 0.5, norm = inf, budget = 3 }

[[releases]]
name = "label"
defense = "label-only"
options = { confidence = 0.9 }
"""


def load(tmp_path, text, preset=None):
    path = tmp_path / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path, preset)


def changed(old, new, text=FULL):
    assert text.count(old) == 1
    return text.replace(old, new)


@looped("name", DEMOS)
def test_bundled_demos_load_and_compare_the_paper_with_both_controls(name):
    spec = bundled_spec(name)
    assert spec.name == name
    defenses = [release.defense for release in spec.releases]
    assert (defenses[0], defenses[-1]) == ("none", "label-only")
    assert "adversarial-noise" in defenses
    assert {"label-only", "static", "retrained", "stack"} <= set(spec.attackers.names)
    assert len(spec.attackers.input_transforms) >= 2
    assert len(spec.attackers.widths) >= 2
    # Equal means for the attackers on every release, and at least the defender's.
    assert spec.attackers.longest >= spec.surrogate.training.epochs


@looped("preset", [None, *PRESETS])
@looped("name", TABLES)
def test_bundled_tables_load_with_every_preset(name, preset):
    spec = bundled_spec(name, preset)
    assert (spec.name, spec.preset) == (name, preset or "")
    assert name.endswith(spec.data.name if spec.data.name == "mnist" else "faces")
    for release in spec.releases:
        assert {"label-only", "static", "retrained"} <= set(spec.attackers_of(release))
        # Whoever copies or repeats, does so wherever there is something to copy or repeat.
        adaptive = set(spec.attackers_of(release)) & {"adversarial-training", "averaging"}
        random = not sketch_defense(release).deterministic
        if release.defense == "none" or release.defense == "purification":
            assert adaptive == set()
        elif not name.startswith("background"):
            assert adaptive == {"averaging" if random else "adversarial-training"}
        else:
            assert ("averaging" in adaptive) == random
    assert spec.attackers.longest >= spec.surrogate.training.epochs


@looped("name", TABLES)
def test_the_cpu_preset_shrinks_networks_epochs_and_images_and_nothing_else(name):
    base, cpu = bundled_spec(name), bundled_spec(name, "cpu")
    assert cpu.attackers.names == base.attackers.names
    assert cpu.attackers.input_transforms == base.attackers.input_transforms
    assert cpu.attackers.held_out == base.attackers.held_out
    assert cpu.attackers.step_factors == base.attackers.step_factors
    assert len(cpu.attackers.widths) == len(base.attackers.widths)
    assert set(cpu.attackers.repeats) <= set(base.attackers.repeats)
    assert dataclasses.replace(cpu.data, side=base.data.side) == base.data
    assert (cpu.data.side != base.data.side) == name.endswith("faces")
    assert cpu.surrogate.input_transform == base.surrogate.input_transform
    assert cpu.surrogate.hidden_layers_removed == base.surrogate.hidden_layers_removed
    for small, row in zip(cpu.releases, base.releases, strict=True):
        training = {key: small.options[key] for key in small.options.keys() - row.options.keys()}
        assert set(training) <= {"epochs"}
        assert {key: small.options[key] for key in row.options} == row.options
        assert dataclasses.replace(small, options=row.options) == row


@looped("name", TABLES)
def test_the_paper_preset_is_larger_than_that_for_cpus_in_every_way(name):
    cpu, paper = bundled_spec(name, "cpu"), bundled_spec(name, "paper")
    if name.endswith("faces"):
        assert (paper.data.name, paper.data.auxiliary_name, paper.data.side) == FACES
        # Of as many images as can still be had: 80 % and 20 %, as Yang et al. split them.
        assert (paper.data.private, paper.data.test, paper.data.auxiliary) == (0.8, 0.2, 1.0)
    else:
        assert (paper.data.name, paper.data.side) == ("mnist", 0)
        for split in ("private", "auxiliary"):
            assert getattr(paper.data, split) > getattr(cpu.data, split)
    assert paper.target.training == YANG_TARGET_SETTINGS
    for part in ("target", "surrogate", "attackers"):
        small, large = getattr(cpu, part), getattr(paper, part)
        assert large.training.epochs > small.training.epochs
    assert min(paper.attackers.widths) > max(cpu.attackers.widths)
    assert paper.target.width > cpu.target.width
    assert paper.surrogate.width > cpu.surrogate.width
    for part in (paper.surrogate, paper.attackers):
        # Yang et al.'s settings, which the paper takes over.
        assert dataclasses.replace(part.training, grace=5) == YANG_SETTINGS


@looped("kind", ["mnist", "faces"])
@looped("preset", PRESETS)
def test_both_tables_have_one_target_and_the_same_means(kind, preset):
    """So that what is trained for one table is not trained again for the other."""
    one, *others = (bundled_spec(f"{table}-{kind}", preset) for table in ("table1", "table2"))
    for other in others:
        for part in ("data", "target", "surrogate"):
            assert getattr(other, part) == getattr(one, part)
        assert other.attackers == one.attackers


def test_the_playground_is_the_leaderboards_smoothed_digits_with_fewer_attackers():
    """So that what it shows of a setting is what the leaderboard says of it."""
    own, other = bundled_spec("playground"), bundled_spec("leaderboard", "smoothed")
    for part in ("data", "target", "surrogate", "seed"):
        assert getattr(own, part) == getattr(other, part)
    for part in ("names", "input_transforms"):
        assert set(getattr(own.attackers, part)) < set(getattr(other.attackers, part))
    # A page that is waited for trains each decoder once, and claims no convergence.
    short = own.attackers.training
    assert own.attackers.most_epochs == short.epochs
    shortened = other.attackers.training_for(short.epochs)
    assert dataclasses.replace(shortened, patience=short.patience) == short
    assert own.attackers.widths == other.attackers.widths


def test_every_bundled_file_is_covered_above_or_by_the_tests_of_what_is_published():
    folder = resources.files("oneway.benchmark") / "experiments"
    files = {entry.name for entry in folder.iterdir() if entry.name.endswith(".toml")}
    rest = {name for name in files if name.endswith(".expected.toml") or name.startswith("figure")}
    known = (*DEMOS, *TABLES, "leaderboard", "playground")
    assert files - rest == {f"{name}.toml" for name in known}


def test_an_unknown_bundled_experiment_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"experiment 'demo-digit'.*mean 'demo-digits'"):
        bundled_spec("demo-digit")


def test_a_file_says_what_it_says(tmp_path):
    spec = load(tmp_path, FULL)
    plain = dataclasses.asdict(spec)

    def assert_is_in(values, where):
        for key, value in values.items():
            if isinstance(value, dict):
                assert_is_in(value, where[key])
            elif key == "releases":
                for wanted, got in zip(value, where[key], strict=True):
                    assert_is_in(wanted, got)
            else:
                assert where[key] == (tuple(value) if isinstance(value, list) else value)

    assert_is_in(tomllib.loads(FULL), plain)
    assert isinstance(spec.target.training.learning_rate, float)  # though written as 1


def test_what_a_file_leaves_out_is_the_default(tmp_path):
    spec = load(tmp_path, MINIMAL)
    assert spec.seed == 0
    attacks = inversion_attacks().items()
    assert spec.attackers.names == tuple(name for name, attack in attacks if attack.by_default)
    assert spec.attackers.input_transforms == ("faithful", "standardized")
    assert spec.attackers.training == spec.surrogate.training == TrainingSettings()
    assert spec.releases[0].options == {}


@looped(
    ("old", "new", "key", "nearest"),
    [
        ("seed = 7", "sed = 7", "sed", "seed"),
        ("private = 10", "privat = 10", "privat", "private"),
        ("blocks = 2", "block = 2", "block", "blocks"),
        ("epochs = 3", "epoch = 3", "epoch", "epochs"),
        ("averaging = 0.5", "avraging = 0.5", "avraging", "averaging"),
        ("patience = 2", "patiense = 2", "patiense", "patience"),
        ("widths = [4, 8]", "width = [4, 8]", "width", "widths"),
        ('defense = "label-only"', 'defence = "label-only"', "defence", "defense"),
        ("[attackers.training]", "[attackers.trainings]", "trainings", "training"),
    ],
)
def test_an_unknown_key_at_any_depth_is_refused_with_the_nearest(tmp_path, old, new, key, nearest):
    with pytest.raises(UnknownNameError, match=f"key in .*'{key}'.*Did you mean '{nearest}'"):
        load(tmp_path, changed(old, new))


def test_a_message_says_where_in_the_file_a_key_is(tmp_path):
    with pytest.raises(UnknownNameError, match=r"spec\.toml\.attackers\.training 'patiense'"):
        load(tmp_path, changed("patience = 2", "patiense = 2"))
    with pytest.raises(UnknownNameError, match=r"spec\.toml\.releases\[2\] 'defence'"):
        load(tmp_path, changed('defense = "label-only"', 'defence = "label-only"'))


@looped(
    ("old", "new", "text"),
    [
        ("seed = 7", 'seed = "7"', "seed must be int, but is str"),
        ("seed = 7", "seed = 7.0", "seed must be int, but is float"),
        ("seed = 7", "seed = true", "seed must be int, but is bool"),
        ("held_out = 0.25", 'held_out = "a"', "held_out must be float, but is str"),
        ("held_out = 0.25", "held_out = true", "held_out must be float, but is bool"),
        ("widths = [4, 8]", "widths = 4", "widths must be tuple, but is int"),
        ("widths = [4, 8]", 'widths = [4, "8"]', r"widths\[1\] must be int, but is str"),
        (
            'input_transforms = ["faithful"]',
            'input_transforms = "faithful"',
            "input_transforms must be tuple",
        ),
        ("options = { confidence = 0.9 }", "options = 0.9", "options must be Mapping"),
        ("[surrogate.training]\naveraging = 0.5", "training = 3", "training must be a table"),
        ('name = "full"', "name = 1", "name must be str, but is int"),
    ],
)
def test_a_value_of_another_type_is_refused_with_both_types(tmp_path, old, new, text):
    with pytest.raises(InvalidOptionError, match=text):
        load(tmp_path, changed(old, new))


@looped(
    ("line", "key"),
    [
        ('name = "full"\n', "name"),
        ("private = 10\n", "private"),
        ("auxiliary = 20\n", "auxiliary"),
        ("test = 30\n", "test"),
        ('defense = "label-only"\n', "defense"),
        ('name = "label"\n', "name"),
    ],
)
def test_a_missing_key_is_refused_by_name(tmp_path, line, key):
    with pytest.raises(InvalidOptionError, match=f"lacks the key '{key}'"):
        load(tmp_path, changed(line, ""))


def test_an_experiment_needs_data_and_releases(tmp_path):
    data = MINIMAL[MINIMAL.index("[data]") : MINIMAL.index("[[releases]]")]
    with pytest.raises(InvalidOptionError, match="lacks the key 'data'"):
        load(tmp_path, changed(data, "", MINIMAL))
    with pytest.raises(InvalidOptionError, match="lacks the key 'releases'"):
        load(tmp_path, MINIMAL[: MINIMAL.index("[[releases]]")])


@looped(
    ("old", "new", "text"),
    [
        ('"adversarial-noise"', '"adverserial-noise"', "unknown defense .*'adversarial-noise'"),
        ("step_size = 0.5", "stepsize = 0.5", "option of 'adversarial-noise'.*'step_size'"),
        ("step_size = 0.5", "inverter = 1, step_size = 1", "unknown option.*'inverter'"),
        ("confidence = 0.9", "confidense = 0.9", "option of 'label-only'.*'confidence'"),
        ('"label-only", "static"]', '"label-only", "static", "retrain"]', "attack .*'retrained'"),
        ('["faithful"]', '["faithfull"]', "unknown input transform 'faithfull'.*'faithful'"),
        (
            'input_transform = "standardized"',
            'input_transform = "standard"',
            "input transform 'standard'",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path, old, new, text):
    with pytest.raises(UnknownNameError, match=text):
        load(tmp_path, changed(old, new))


@looped(
    ("old", "new", "text"),
    [
        ("step_size = 0.5, ", "", "'adversarial-noise' needs the option 'step_size'"),
        ('name = "noise"', 'name = "none"', "distinct names"),
        ('["label-only", "static"]', '["static", "retrained"]', "must include 'label-only'"),
        ('["label-only", "static"]', '["label-only", "retrained"]', "and 'static'"),
        ('["faithful"]', "[]", "input_transforms must hold at least one value"),
        ("widths = [4, 8]", "widths = []", "widths must hold at least one value"),
        ("held_out = 0.25", "held_out = 0", "held_out must be above 0 and below 1"),
        ("held_out = 0.25", "held_out = 1.0", "held_out must be above 0 and below 1"),
        ("held_out = 0.25", "held_out = nan", "held_out must be a finite number"),
        ("epochs = 9", "epochs = 0", "epochs must be a whole number of at least 1"),
        ("\ntest = 30", "\ntest = 30\ncalibration = -1", "calibration must be .* at least 0"),
        ("batch_size = 5", "batch_size = 1", "batch_size must be .* at least 2"),
    ],
)
def test_a_value_outside_its_range_is_refused_before_any_work(tmp_path, old, new, text):
    with pytest.raises(InvalidOptionError, match=text):
        load(tmp_path, changed(old, new))


def test_the_first_release_must_be_undefended(tmp_path):
    first = '[[releases]]\nname = "none"\ndefense = "none"\n'
    with pytest.raises(InvalidOptionError, match="first release must have defense = 'none'"):
        load(tmp_path, changed(first, "", FULL) + "\n" + first)
    with pytest.raises(InvalidOptionError, match="first release must have defense = 'none'"):
        load(tmp_path, "releases = []\n" + MINIMAL[: MINIMAL.index("[[releases]]")])


def test_files_that_are_missing_or_not_toml_are_refused_by_name(tmp_path):
    with pytest.raises(MissingDataError, match=r"no experiment file .*absent\.toml"):
        load_spec(tmp_path / "absent.toml")
    with pytest.raises(CorruptDataError, match=r"spec\.toml is not TOML"):
        load(tmp_path, "name = ")
    with pytest.raises(CorruptDataError, match=r"spec\.toml is not TOML: too deeply nested"):
        load(tmp_path, "name = " + "[" * 100_000)
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(CorruptDataError, match=r"latin\.toml is not TOML"):
        load_spec(tmp_path / "latin.toml")


@looped(
    ("old", "new", "text"),
    [
        ("step_size = 0.1", "step_size = -1.0", "step_size must be positive"),
        ("step_size = 0.1", 'step_size = 0.1, update = "projekt"', "Did you mean 'project'"),
        ("width = 32", "width = 0", "width must be a whole number of at least 1"),
    ],
)
def test_a_value_outside_its_range_is_refused_when_the_spec_is_read(tmp_path, old, new, text):
    bundled = resources.files("oneway.benchmark") / "experiments" / "demo-digits.toml"
    content = bundled.read_text(encoding="utf-8")
    assert old in content
    path = tmp_path / "spec.toml"
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises((InvalidOptionError, UnknownNameError), match=text):
        load_spec(path)


def test_options_of_the_training_stand_beside_the_defenses_own(tmp_path):
    text = MINIMAL + '\n[[releases]]\nname = "PPF"\ndefense = "purification"\n'
    spec = load(tmp_path, text + "options = { epochs = 3, keep_label = true }\n")
    assert sketch_defense(spec.releases[1]).keeps_label
    with pytest.raises(UnknownNameError, match="Did you mean 'epochs'"):
        load(tmp_path, text + "options = { epoch = 3 }\n")
    with pytest.raises(UnknownNameError, match="unknown option of 'purification' 'generator'"):
        load(tmp_path, text + "options = { generator = 3 }\n")


LEARNED = ("retrained", "static", "label-only")


def test_stages_are_counted_without_a_surrogate_where_none_is_wanted(tmp_path):
    plain = changed('name = "none"\n', f'name = "none"\nattackers = {list(LEARNED)}\n', MINIMAL)
    # One target; and per release the defense itself, matching, and each attacker's contest.
    assert count_stages(load(tmp_path, plain)) == 2 + 1 * (2 + 3 * 4)
    assert count_stages(load(tmp_path, FULL)) == 3 + 3 * (2 + 2 * 2)


def test_a_release_may_name_its_own_attackers(tmp_path):
    text = changed('name = "label"\n', 'name = "label"\nattackers = ["label-only", "retrained"]\n')
    spec = load(tmp_path, text)
    named = [spec.attackers_of(release) for release in spec.releases]
    assert named == [("label-only", "static")] * 2 + [("label-only", "retrained")]
    with pytest.raises(UnknownNameError, match=r"unknown attack 'retrain'.*'retrained'"):
        load(tmp_path, text.replace('"retrained"]', '"retrain"]'))


def test_every_release_is_attacked_with_the_label_alone(tmp_path):
    text = changed('name = "label"\n', 'name = "label"\nattackers = ["retrained"]\n')
    with pytest.raises(
        InvalidOptionError, match=r"release 'label' is not attacked by 'label-only'"
    ):
        load(tmp_path, text)


@looped("kind", ["augmented", "min-max"])
def test_only_a_defense_with_a_surrogate_may_ask_for_another_one(tmp_path, kind):
    text = changed('name = "label"\n', f'name = "label"\nsurrogate = "{kind}"\n')
    with pytest.raises(
        InvalidOptionError, match=rf"'label' has a surrogate of kind .*'{kind}'.*'label-only'"
    ):
        load(tmp_path, text)


def test_the_first_releases_attackers_must_give_both_baselines(tmp_path):
    for short in ('["static"]', '["label-only"]'):
        text = changed('name = "none"\n', f'name = "none"\nattackers = {short}\n')
        with pytest.raises(InvalidOptionError, match=r"'label-only' and 'static'.*the baselines"):
            load(tmp_path, text)


@looped(
    ("line", "text"),
    [
        ('surrogate = "augmentd"', "unknown surrogate 'augmentd'. Did you mean 'augmented'"),
        ('surrogates = "plain"', "key in .*'surrogates'.*Did you mean 'surrogate'"),
    ],
)
def test_an_unknown_surrogate_is_refused(tmp_path, line, text):
    with pytest.raises(UnknownNameError, match=text):
        load(tmp_path, changed('name = "noise"\n', f'name = "noise"\n{line}\n'))


@looped(
    ("line", "text"),
    [
        ("repeats = [1]", "repeats must be .* at least 2"),
        ("step_factors = []", "step_factors must hold at least one"),
        ("step_factors = [1.0, 0.0]", "step_factors must be"),
    ],
)
def test_an_adaptive_attackers_means_must_be_in_range(tmp_path, line, text):
    with pytest.raises(InvalidOptionError, match=text):
        load(tmp_path, changed("held_out = 0.25\n", f"held_out = 0.25\n{line}\n"))


PRESET = """
[presets.tiny.data]
private = 5

[presets.tiny.target.training]
epochs = 1

[presets.tiny.attackers]
widths = [2]

[[presets.tiny.releases]]
name = "noise"
options = { step_size = 0.25, steps = 3 }

[presets.other]
seed = 9
"""


def test_a_preset_changes_what_it_names_and_leaves_the_rest(tmp_path):
    base, tiny = load(tmp_path, FULL), load(tmp_path, FULL + PRESET, "tiny")
    assert load(tmp_path, FULL + PRESET) == base  # no preset is none
    training = dataclasses.replace(base.target.training, epochs=1)
    noise = dataclasses.replace(
        base.releases[1],
        options={"step_size": 0.25, "norm": float("inf"), "budget": 3, "steps": 3},
    )
    assert tiny == dataclasses.replace(
        base,
        preset="tiny",
        data=dataclasses.replace(base.data, private=5),
        target=dataclasses.replace(base.target, training=training),
        attackers=dataclasses.replace(base.attackers, widths=(2,)),
        releases=(base.releases[0], noise, base.releases[2]),
    )
    assert load(tmp_path, FULL + PRESET, "other") == dataclasses.replace(
        base, preset="other", seed=9
    )


@looped(
    ("old", "new", "error", "text"),
    [
        ("", "", UnknownNameError, r"unknown preset of .*'tinny'.*Did you mean 'tiny'"),
        (
            'name = "noise"\n',
            'name = "noize"\n',
            UnknownNameError,
            "row of releases 'noize'.*noise",
        ),
        ("private = 5", "privat = 5", UnknownNameError, "'privat'.*Did you mean 'private'"),
        ("private = 5", 'private = "5"', InvalidOptionError, "private must be float, but is str"),
        ("steps = 3", "stepz = 3", UnknownNameError, "'stepz'.*Did you mean 'steps'"),
        ("widths = [2]", "widths = [0]", InvalidOptionError, "widths must be"),
    ],
    ids=["preset", "row", "key", "type", "option", "range"],
)
def test_a_mistake_in_a_preset_is_refused_like_any_other(tmp_path, old, new, error, text):
    preset = changed(old, new, PRESET) if old else PRESET
    with pytest.raises(error, match=text):
        load(tmp_path, FULL + preset, "tiny" if old else "tinny")


def test_a_preset_of_a_file_without_any_is_refused():
    with pytest.raises(UnknownNameError, match="unknown preset of demo-digits 'cpu'"):
        bundled_spec("demo-digits", "cpu")


@looped(
    ("defense", "options", "text"),
    [
        ("mutual-information", {"beta": -1}, "beta must be finite and at least"),
        ("mutual-information", {"beta": "a"}, "beta must be finite and at least"),
        ("mutual-information", {"beta": 0.1, "epochs": 0}, "epochs must be"),
        ("purification", {"inversion_weight": -3}, "inversion_weight must be"),
        ("purification", {"hidden": 0}, "hidden must be a whole number"),
        ("purification", {"keep_label": "no"}, "keep_label must be true or"),
    ],
)
def test_an_option_of_a_defenses_training_is_refused_before_any_work(defense, options, text):
    with pytest.raises(InvalidOptionError, match=text):
        ReleaseSpec("r", defense, options)


@looped(
    ("changes", "text"),
    [
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"name": "../out"}, "name must be letters"),
    ],
)
def test_an_experiment_that_could_not_run_is_refused(changes, text):
    data = DataSpec(name="digits", private=10, auxiliary=10, test=10)
    given = {"name": "own", "data": data, "releases": (ReleaseSpec("none", "none"),)}
    with pytest.raises(InvalidOptionError, match=text):
        ExperimentSpec(**(given | changes))
    for split in ("private", "auxiliary", "test"):
        with pytest.raises(InvalidOptionError, match=f"{split} must be"):
            dataclasses.replace(data, **{split: 0})


def test_presets_must_be_tables(tmp_path):
    with pytest.raises(InvalidOptionError, match=r"presets of .* must be tables"):
        load(tmp_path, MINIMAL + "\n[presets]\ncpu = 3\n")

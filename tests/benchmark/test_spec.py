"""Experiment specs: every mistake is found before any work, and named with its remedy."""

import dataclasses
import re
import tomllib
from importlib import resources

import pytest
from torch import nn

from oneway.benchmark import ATTACKS, DEFENSES, bundled_spec, count_stages, load_spec
from oneway.benchmark.registry import build_defense
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, UnknownNameError
from oneway.inversion import FRONT_ENDS, TrainingSettings

BUNDLED = ("demo-digits", "demo-mnist")

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
front_end = "standardized"
[surrogate.training]
averaging = 0.5

[attackers]
names = ["label-only", "static"]
front_ends = ["faithful"]
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


def load(tmp_path, text):
    path = tmp_path / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path)


def changed(old, new, text=FULL):
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_experiments_load_and_compare_the_paper_with_both_controls(name):
    spec = bundled_spec(name)
    assert spec.name == name
    defenses = [release.defense for release in spec.releases]
    assert (defenses[0], defenses[-1]) == ("none", "label-only")
    assert "adversarial-noise" in defenses
    assert set(spec.attackers.names) == set(ATTACKS)
    assert len(spec.attackers.front_ends) >= 2
    assert len(spec.attackers.widths) >= 2
    # Equal means for the attackers on every release, and at least the defender's.
    assert spec.attackers.training.epochs >= spec.surrogate.training.epochs


def test_every_bundled_file_is_covered_above():
    folder = resources.files("oneway.benchmark") / "experiments"
    files = {entry.name for entry in folder.iterdir() if entry.name.endswith(".toml")}
    assert files == {f"{name}.toml" for name in BUNDLED}


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
    assert spec.attackers.names == tuple(ATTACKS)
    assert spec.attackers.front_ends == FRONT_ENDS
    assert spec.attackers.training == spec.surrogate.training == TrainingSettings()
    assert spec.releases[0].options == {}


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("seed = 7", 'seed = "7"', "seed must be int, but is str"),
        ("seed = 7", "seed = 7.0", "seed must be int, but is float"),
        ("seed = 7", "seed = true", "seed must be int, but is bool"),
        ("held_out = 0.25", 'held_out = "a"', "held_out must be float, but is str"),
        ("held_out = 0.25", "held_out = true", "held_out must be float, but is bool"),
        ("widths = [4, 8]", "widths = 4", "widths must be tuple, but is int"),
        ("widths = [4, 8]", 'widths = [4, "8"]', r"widths\[1\] must be int, but is str"),
        ('front_ends = ["faithful"]', 'front_ends = "faithful"', "front_ends must be tuple"),
        ("options = { confidence = 0.9 }", "options = 0.9", "options must be Mapping"),
        ("[surrogate.training]\naveraging = 0.5", "training = 3", "training must be a table"),
        ('name = "full"', "name = 1", "name must be str, but is int"),
    ],
)
def test_a_value_of_another_type_is_refused_with_both_types(tmp_path, old, new, text):
    with pytest.raises(InvalidOptionError, match=text):
        load(tmp_path, changed(old, new))


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"adversarial-noise"', '"adverserial-noise"', "unknown defense .*'adversarial-noise'"),
        ("step_size = 0.5", "stepsize = 0.5", "option of 'adversarial-noise'.*'step_size'"),
        ("step_size = 0.5", "inverter = 1, step_size = 1", "unknown option.*'inverter'"),
        ("confidence = 0.9", "confidense = 0.9", "option of 'label-only'.*'confidence'"),
        ('"label-only", "static"]', '"label-only", "static", "retrain"]', "attack .*'retrained'"),
        ('["faithful"]', '["faithfull"]', "unknown front end 'faithfull'.*'faithful'"),
        ('front_end = "standardized"', 'front_end = "standard"', "front end 'standard'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path, old, new, text):
    with pytest.raises(UnknownNameError, match=text):
        load(tmp_path, changed(old, new))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("step_size = 0.5, ", "", "'adversarial-noise' needs the option 'step_size'"),
        ('name = "noise"', 'name = "none"', "distinct names"),
        ('["label-only", "static"]', '["static", "retrained"]', "must include 'label-only'"),
        ('["label-only", "static"]', '["label-only", "retrained"]', "and 'static'"),
        ('["faithful"]', "[]", "at least one front end and one width"),
        ("widths = [4, 8]", "widths = []", "at least one front end and one width"),
        ("held_out = 0.25", "held_out = 0", "held_out must be between 0 and 1"),
        ("held_out = 0.25", "held_out = 1.0", "held_out must be between 0 and 1"),
        ("held_out = 0.25", "held_out = nan", "held_out must be between 0 and 1"),
        ("epochs = 9", "epochs = 0", "epochs must be a whole number of at least 1"),
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
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(CorruptDataError, match=r"latin\.toml is not TOML"):
        load_spec(tmp_path / "latin.toml")


@pytest.mark.parametrize(
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


def test_defenses_are_built_as_they_are_checked():
    with pytest.raises(UnknownNameError, match=re.escape("unknown defense 'nothing'")):
        build_defense("nothing", {}, None)
    for name in DEFENSES:
        options = {"step_size": 0.1} if name == "adversarial-noise" else {}
        build_defense(name, options, nn.Identity())
    assert build_defense("label-only", {"confidence": 0.75}, None).confidence == 0.75
    with pytest.raises(UnknownNameError, match="Did you mean 'confidence'"):
        build_defense("label-only", {"confidenc": 0.75}, None)


def test_stages_are_counted_without_a_surrogate_where_none_is_wanted(tmp_path):
    # One target; and per release the defense itself, and each attacker's contest.
    assert count_stages(load(tmp_path, MINIMAL)) == 1 + 1 * (1 + 3 * 4)
    assert count_stages(load(tmp_path, FULL)) == 2 + 3 * (1 + 2 * 2)

"""Options declared once: what is refused of each, on every way to a defense and its training."""

import dataclasses
import inspect
import itertools
import math

import pytest
import torch
from torch import Generator, nn

from oneway.defenses import DEFENSES, check_options, training_options
from oneway.defenses.base import BaseDefense, LabelOnRequest, ScoreDefense
from oneway.defenses.registry import declared_options
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from oneway.options import Options, injected, injected_names, option, options_of
from surrogates import small_inverter

NOT_ABOVE_0 = (0, -1.0, math.nan, math.inf, True, "1", None)
NOT_AT_LEAST_0 = (-0.1, math.nan, math.inf, "1", True, None)
NO_COUNT = (0, -1, 1.5, True, "2", None)
NO_SEED = (-1, 0.5, True, "2", None)
NO_SWITCH = (1, 0, "no", None)
NO_NAME = ("", "nothing", None, 3, ["spread"])
OPTIONAL = {"budget": NOT_ABOVE_0[:-1], "start_radius": NOT_ABOVE_0[:-1]}

NOISE = {
    "step_size": NOT_ABOVE_0,
    "steps": NO_COUNT,
    "norm": (0, 3, True, "1", None),
    "margin": NOT_ABOVE_0,
    **OPTIONAL,
}
LABEL = {"keep_label": NO_SWITCH, "margin": NOT_ABOVE_0}
TRAINING = {"epochs": NO_COUNT, "learning_rate": NOT_ABOVE_0, "batch_size": (1, *NO_COUNT)}

CODEBOOK = {
    "min_members": NO_COUNT,
    "rate_weight": (-1, math.nan, -math.inf, "1", True, None),
    "image_weight": NOT_AT_LEAST_0,
    "variant_weight": NOT_AT_LEAST_0,
    "explicit_classes": NO_COUNT,
    "max_boxes": NO_COUNT,
    "shared_levels": NO_COUNT,
    "center": NO_NAME,
    "l1_budget": (-0.1, 2.1, math.nan, "1", True),
    "held_out": (*NOT_AT_LEAST_0, 1, 1.0),
    "drop_copies": NO_SWITCH,
    "max_cells": (0, -1, 1.5, "1", True),
    "max_l1_worst": (0, -0.1, 2.1, math.nan, "1", True),
    "max_group_share": (*NOT_ABOVE_0, 1.1),
}

REFUSED = {
    "codebook": CODEBOOK,
    "decoy-codebook": {
        **CODEBOOK,
        "decoy_l1": NOT_ABOVE_0,
        "decoy_steps": NO_COUNT,
        "surrogate_width": NO_COUNT,
        "surrogate_epochs": NO_COUNT,
    },
    "label-only": {"confidence": (*NOT_ABOVE_0, 1, 1.5)},
    "rounding": {"decimals": (-1, 13, 2.0, None, True, "2")},
    "top-rounding": {"count": NO_COUNT, "decimals": (0, -1, 13, 2.0, None, True, "2")},
    "top-k": {"count": NO_COUNT, "rest": NO_NAME},
    "temperature": {"temperature": NOT_ABOVE_0},
    "confidence-cutoff": {"threshold": (*NOT_ABOVE_0, 0.49, 1, 1.5)},
    "reverse-sigmoid": {"beta": NOT_ABOVE_0, "gamma": NOT_ABOVE_0, **LABEL},
    "gaussian-noise": {"standard_deviation": NOT_ABOVE_0, **LABEL},
    "dirichlet-noise": {"concentration": NOT_ABOVE_0, **LABEL},
    "one-parameter": {"epsilon": NOT_ABOVE_0},
    "ssd": {
        "epsilon": NOT_ABOVE_0,
        "temperature": NOT_ABOVE_0,
        "label_guarded": NO_SWITCH,
        "means_of": NO_NAME,
    },
    "adversarial-noise": {
        **NOISE,
        "update": ("projekt", *NO_NAME),
        "search": ("FGSM", "random start", *NO_NAME),
        "decay": (-0.1, math.inf, math.nan, "1", True),
        "coarse_steps": (0, -1, 1.5, "1", True),
    },
    "input-free-noise": {
        **NOISE,
        "reference": ("image", *NO_NAME),
        "search": ("FGSM", "no-start", "", 3, ["sign"]),
    },
    "memguard": {
        "budget": NOT_ABOVE_0,
        "steps": NO_COUNT,
        "step_size": NOT_ABOVE_0,
        "label_weight": NOT_AT_LEAST_0,
        "hidden": (*NO_COUNT, 3),
        **TRAINING,
    },
    "hamp": {"inputs": NO_COUNT},
    "modelguard-s": {"epsilon": NOT_ABOVE_0, "grows": NO_SWITCH},
    "modelguard-w": {"epsilon": NOT_ABOVE_0},
    "lpa": {
        "budget": NOT_ABOVE_0,
        "wrong_image": NO_NAME,
        "hidden": NO_COUNT,
        "helper_width": NO_COUNT,
        **TRAINING,
    },
    "purification": {
        **LABEL,
        "label_weight": NOT_AT_LEAST_0,
        "inversion_weight": NOT_AT_LEAST_0,
        "hidden": NO_COUNT,
        "helper_width": NO_COUNT,
        **TRAINING,
    },
    "mutual-information": {**LABEL, "beta": NOT_AT_LEAST_0, **TRAINING},
    "permutation": {"seed": NO_SEED},
    "class-offsets": {"scale": NOT_ABOVE_0, "seed": NO_SEED, **LABEL},
    "planted-leak": {
        "scale": NOT_ABOVE_0,
        "positions": (3, "12", [-1], [1.5], [True]),
        "confidence": (*NOT_ABOVE_0, 1, 1.5),
    },
    "planted-levels": {
        "position": (-1, 1.5, True, "1"),
        "borders": (0.5, [], "12", [0.5, 0.5], [0.5, 0.2], [float("nan")], ["a"]),
        "step": NOT_ABOVE_0,
    },
    "noisy-tail": {"count": NO_COUNT, "scale": NOT_ABOVE_0, "seed": NO_SEED},
}
"""Values of each option that are outside its range, or are something else."""

NEEDED = {
    "adversarial-noise": {"step_size": 0.1},
    "input-free-noise": {"step_size": 0.1},
    "mutual-information": {"beta": 0.01},
}


def constructed(name, options):
    """Build a defense by its class; the registry checks nothing on this way."""
    given = {
        "inverter": small_inverter(),
        "state": nn.Identity(),
        "generator": Generator(),
    }
    kind = DEFENSES[name]
    own = {key: value for key, value in options.items() if key in options_of(kind)}
    return kind(**{key: given[key] for key in injected_names(kind)}, **own)


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_outside_its_range_is_refused_by_name_on_every_way(name):
    training = training_options(name, declared_options(name))
    for key, values in REFUSED[name].items():
        for value in values:
            options = {**NEEDED.get(name, {}), key: value}
            ways = [lambda given=options: check_options(name, given)]
            if key in training:
                own = training_options(name, options)
                ways.append(lambda given=own: DEFENSES[name].training(**given))
                ways.append(
                    lambda given=own: DEFENSES[name].train(None, generator=Generator(), **given)
                )
            else:
                ways.append(lambda given=options: constructed(name, given))
            for way in ways:
                with pytest.raises((InvalidOptionError, UnknownNameError)) as raised:
                    way()
                assert key in str(raised.value).partition("'")[0], (key, value)


def test_every_default_is_within_its_range():
    for name in DEFENSES:
        for declared in declared_options(name).values():
            if not declared.required:
                declared.refuse(declared.default)


def test_every_option_says_what_it_sets_and_ranges_stand_in_the_declaration():
    for name in DEFENSES:
        for declared in declared_options(name).values():
            assert len(declared.help.split()) > 2, (name, declared.name)
            assert declared.help.endswith((".", ".)")), (name, declared.name)
    assert not REFUSED.keys() - DEFENSES.keys()
    for name, refused in REFUSED.items():
        assert refused.keys() == declared_options(name).keys(), name


def test_an_unknown_name_is_refused_with_the_nearest_one():
    for options, text in (
        ({"update": "projekt"}, r"unknown update 'projekt'\. Did you mean 'project'\?"),
        ({"search": "momentun"}, r"unknown search 'momentun'\. Did you mean 'momentum'\?"),
    ):
        with pytest.raises(UnknownNameError, match=text):
            constructed("adversarial-noise", {"step_size": 0.1, **options})


class Settings(Options):
    """How something is done."""

    count: int = option("Number of things.", most=5)
    share: float = option("Share of things.", default=0.5, least=0, below=1)
    limit: float | None = option("Most of it.", default=None, above=-2, most=2)


class More(Settings):
    """How something more is done."""

    count: int = option("Number of more things.", default=7, least=0)
    is_loud: bool = option("Whether to say so.", default=False, is_strength=True)


def test_messages_say_the_range_and_what_came():
    for given, text in (
        ({"count": 6}, "count must be a whole number from 1 to 5, but got 6."),
        ({"count": 1, "share": 1}, "share must be at least 0 and below 1, but got 1."),
        ({"count": 1, "share": -0.1}, "share must be at least 0 and below 1, but got -0.1."),
        ({"count": 1, "limit": -2}, "limit must be above -2 and at most 2, but got -2."),
        ({"count": 1, "limit": 3}, "limit must be above -2 and at most 2, but got 3."),
        ({"count": 1, "limit": "x"}, "limit must be a finite number, but got 'x'."),
    ):
        with pytest.raises(InvalidOptionError) as raised:
            Settings(**given)
        assert str(raised.value) == text
    assert Settings(count=5, limit=2).limit == 2
    with pytest.raises(TypeError, match="count"):
        Settings()


class Several(Options):
    """Several things."""

    names: tuple[str, ...] = option("Their names.", default_factory=lambda: ("a", "b"))
    counts: tuple[int, ...] = option("Numbers of them.", least=0)


def test_several_values_are_each_in_range_and_a_made_default_is_a_default():
    assert Several(counts=[0, 2]).names == ("a", "b")
    declared = options_of(Several)
    assert {each.name: each.required for each in declared.values()} == {
        "counts": True,
        "names": False,
    }
    assert list(declared) == ["counts", "names"]
    for counts, text in (
        ((), "counts must hold at least one value, but is empty."),
        ((1, -1), "each of counts must be a whole number of at least 0, but got -1."),
        (3, "counts must hold values, but got 3. Pass (3,)."),
        ("3", "counts must hold values, but got '3'. Pass ('3',)."),
    ):
        with pytest.raises(InvalidOptionError) as raised:
            Several(counts=counts)
        assert str(raised.value) == text


def test_options_are_frozen_inherited_and_the_class_s_own_come_first():
    made = More(share=0.2)
    assert (made.count, made.share, made.is_loud) == (7, 0.2, False)
    assert made == More(share=0.2) != More()
    with pytest.raises(AttributeError):
        made.share = 0.3
    assert list(options_of(More)) == ["count", "is_loud", "share", "limit"]
    assert [declared.is_strength for declared in options_of(More).values()].index(True) == 1
    assert options_of(Options) == {}


class Doubled(LabelOnRequest, ScoreDefense):
    """Doubles the scores and lets the last class win, in float64."""

    bonus: float = option("What the last class gets.", default=100.0, above=0)
    table: object = injected("Not used.", default=None)

    def transform(self, logits):
        logits[..., -1] += self.bonus  # writes into what it is given
        return 2 * logits.double()


def test_a_defense_of_scores_writes_its_mathematics_and_nothing_else():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    before = logits.detach().clone()
    with torch.inference_mode():
        free, kept = Doubled()(logits), Doubled(keep_label=True, margin=0.5)(logits)
    assert torch.equal(logits, before)
    assert torch.equal(free, torch.tensor([[2.0, 4.0, 200.0], [0.0, 0.0, 200.0]]))
    assert torch.equal(kept, torch.tensor([[2.0, 200.5, 200.0], [200.5, 0.0, 200.0]]))
    assert free.dtype == logits.dtype
    assert not free.requires_grad
    assert not free.is_inference()
    assert injected_names(Doubled) == ("table",)
    assert isinstance(Doubled(), BaseDefense)
    assert repr(Doubled()) == "Doubled(keep_label=False, margin=0.001, bonus=100.0)"
    with pytest.raises(TypeError, match="abstract"):
        ScoreDefense()


class Erasing(BaseDefense):
    """Releases each image's first pixel as the last class's score, and erases the image."""

    requires_input = True
    keeps_label = False

    def respond(self, logits, images):
        answers = logits.clone()
        answers[:, -1] = images.flatten(1)[:, 0]
        images.zero_()
        return answers


def test_a_defense_that_writes_into_its_images_leaves_the_caller_s_alone():
    logits, images = torch.zeros(2, 3), torch.tensor([[0.25, 1.0], [0.5, 1.0]])
    assert torch.equal(Erasing()(logits, images)[:, -1], torch.tensor([0.25, 0.5]))
    assert torch.equal(images, torch.tensor([[0.25, 1.0], [0.5, 1.0]]))
    with pytest.raises(InvalidTensorError, match="images must be given"):
        Erasing()(logits)


def test_the_docstring_of_a_class_says_what_each_option_sets():
    class Few(Options):
        """Some options."""

        width: int = option("Width, in pixels.", default=1)

    class More(Few):
        """More options."""

        level: float = option("Level, in nats.", default=0.5)

    assert inspect.getdoc(More) == (
        "More options.\n\nAttributes:\n    width: Width, in pixels.\n    level: Level, in nats."
    )
    assert inspect.getdoc(Options).count("Attributes:") == 0


def test_a_class_that_was_sent_by_value_keeps_its_defaults_and_required_options():
    """Ray and joblib send what a script defines by value, with copies of ``MISSING``."""

    class Sent(Options):
        given: int = option("Required.")
        kept: int = option("Has a default.", default=3)
        made: tuple[int, ...] = option("Makes its default.", default_factory=lambda: (1, 2))

    for field, name in itertools.product(dataclasses.fields(Sent), ("default", "default_factory")):
        if getattr(field, name) is dataclasses.MISSING:
            setattr(field, name, type(dataclasses.MISSING)())
    options = options_of(Sent)
    required = {name: each.required for name, each in options.items()}
    assert required == {"given": True, "kept": False, "made": False}
    assert (options["kept"].default, options["made"].default) == (3, (1, 2))

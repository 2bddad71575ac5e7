"""Models of transformers behind a guard: their own output object, with guarded logits alone."""

import pytest
import torch

from laws import looped
from oneway.adapters import Guard, GuardedModule
from oneway.defenses import build_defense
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError
from optional import later
from rows import leads

transformers = later("transformers")
IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "num_labels": 4,
}


def texts():
    """Return a classifier of texts, and a batch as a tokenizer gives it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=11, max_position_embeddings=16, **TINY)
        )
    ids = torch.arange(30).reshape(5, 6) % 11
    mask = (torch.arange(6) < torch.arange(2, 7)[:, None]).long()
    return model.eval(), {"input_ids": ids, "attention_mask": mask}


def vision():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.ViTConfig(image_size=8, patch_size=4, **TINY)
        return transformers.ViTForImageClassification(config).eval()


def test_ids_and_masks_reach_the_model_and_its_output_comes_back_with_logits_alone():
    model, batch = texts()
    guarded = GuardedModule(model, Rounding(decimals=1), outputs="logits", decimals=3)
    more = {"output_hidden_states": True, "output_attentions": True}
    labels = torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        clean = model(**batch, **more, labels=labels)
        answer = guarded(**batch, **more, labels=labels)
        by_position = guarded(batch["input_ids"], batch["attention_mask"])
    assert clean.loss is not None
    assert len(clean.hidden_states) == 2
    assert type(answer) is type(clean)
    assert list(answer) == ["logits"]
    assert answer.loss is answer.hidden_states is answer.attentions is None
    released = Guard(Rounding(decimals=1), "logits", decimals=3)(clean.logits)
    torch.testing.assert_close(answer.logits.softmax(-1), released)
    torch.testing.assert_close(by_position.logits, answer.logits)
    assert leads(answer.logits, clean.logits.argmax(-1))
    assert not answer.logits.requires_grad


def test_a_tuple_is_answered_with_the_scores_alone():
    model, batch = texts()
    guarded = GuardedModule(model, Rounding(decimals=1), outputs="logits")
    for more in ({}, {"output_hidden_states": True}):
        released = guarded(**batch, return_dict=False, **more)
        torch.testing.assert_close(released, guarded(**batch).logits.softmax(-1))


def test_a_model_without_scores_of_classes_is_refused_by_the_fields_of_its_answer():
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=16, **TINY)
    guarded = GuardedModule(transformers.BertModel(config), Rounding(), outputs="logits")
    with pytest.raises(InvalidTensorError, match=r"last_hidden_state: float32 \(5, 6, 8\)"):
        guarded(**texts()[1])
    tokens = transformers.BertForTokenClassification(config)
    with pytest.raises(InvalidTensorError, match=r"gave \(5, 6, 4\)"):
        GuardedModule(tokens, Rounding(), outputs="logits")(**texts()[1])


@looped("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@looped("needs", [False, True])
def test_images_are_answered_in_the_type_of_the_weights(kind, needs):
    model = vision().to(kind)
    flat = torch.nn.Sequential(torch.nn.Linear(4, 192), torch.nn.Unflatten(1, (3, 8, 8)))
    noise = build_defense("adversarial-noise", {"step_size": 0.4}, flat)
    guarded = GuardedModule(model, noise if needs else Rounding(decimals=1), outputs="logits")
    with torch.no_grad():
        clean = model(IMAGES.to(kind)).logits
        answer = guarded(pixel_values=IMAGES)
    assert answer.logits.dtype == kind
    assert leads(answer.logits, clean.argmax(-1))


def test_a_model_of_several_labels_is_refused_when_it_is_guarded():
    """Its scores are answers of their own, through a sigmoid: no softmax has a label in them."""
    model = vision()
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(InvalidOptionError, match="one class, but its configuration says"):
        GuardedModule(model, Rounding(decimals=1), outputs="logits")

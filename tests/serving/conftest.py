"""Servers and their clients in this process, apart from whoever runs the tests."""

import pytest

from endpoints import no_environment


@pytest.fixture(scope="module", autouse=True)
def direct():
    with pytest.MonkeyPatch.context() as patch:
        no_environment(patch)
        yield

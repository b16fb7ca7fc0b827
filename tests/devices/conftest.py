"""Two devices that are no CPU, known to llama.cpp while the tests of this folder run."""

from collections.abc import Iterator

import fake_devices
import pytest
from fake_devices import FakeDevices


@pytest.fixture(scope="package")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDevices]:
    """FAKE0 and FAKE1."""
    with fake_devices.registered(fake_devices.build(tmp_path_factory.mktemp("fake"))) as found:
        yield found

import sys

import pytest


@pytest.fixture(autouse=True)
def _empty_param_store():
    """Pyro keeps parameters for the whole process; no test sees another's."""
    pyro = sys.modules.get("pyro")
    if pyro is not None:
        pyro.clear_param_store()

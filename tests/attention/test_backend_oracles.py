"""Every backend of which a library has an implementation agrees with it, output and gradient."""

import pytest
from backend_oracles import ORACLES, errors


@pytest.mark.parametrize("name", ORACLES)
def test_library_agrees(name):
    # reformer-pytorch adds 1e-9 to a count before its logarithm, transformers' Reformer 1e-6 to a squared length, and
    # Performer's ε is 1e-12 here, not 0.
    loose = {
        "reformer · reformer-pytorch": 1e-7,
        "reformer · transformers": 1e-6,
        "performer · performer-pytorch": 1e-7,
    }
    assert max(errors(name)) < loose.get(name, 1e-12)

"""Every backend of which a library has an implementation agrees with it, output and gradient."""

import pytest
from backend_oracles import ORACLES, errors


@pytest.mark.parametrize("name", ORACLES)
def test_library_agrees(name):
    # reformer-pytorch adds 1e-9 to a count before its logarithm, and Performer's ε is 1e-12 here, not 0.
    assert max(errors(name)) < (1e-7 if name.startswith(("reformer", "performer ")) else 1e-12)

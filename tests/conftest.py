"""Settings for all tests."""

import os
import tempfile

import pytest
import torch

from sfumato.engine import nearness, trainer

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sfumato-tests-")  # what is cached stays out of the user's own

# The tensors of these tests are tiny: a second thread costs more than it computes, six times more on a busy machine.
torch.set_num_threads(1)

nearness.DRAWN = 200  # a choice that tests make need not be a good one
MEASURED = trainer.MEASURED
trainer.MEASURED = 16, 16  # and an error that they measure need not be a precise one


@pytest.fixture(scope="module")
def well_measured():
    """For modules where latents are asked for: they are as white as what is measured of them is precise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "MEASURED", MEASURED)
        yield

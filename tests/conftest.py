"""Settings for all tests."""

import torch

# The tensors of these tests are tiny: a second thread costs more than it computes, six times more on a busy machine.
torch.set_num_threads(1)

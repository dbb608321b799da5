"""Settings for all tests."""

import torch

# The tensors of these tests are tiny: a second thread costs more than it computes, and on a busy machine six times more.
torch.set_num_threads(1)

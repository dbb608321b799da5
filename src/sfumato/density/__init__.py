"""What a model thinks data are worth: a bound on log p(x) through the chain, or log p(x) through the flow."""

from sfumato.density.chain import Bound, vlb
from sfumato.density.decoder import Decoder, Density, Discretised
from sfumato.density.flow import LOW, FlowLogp, flow_logp

__all__ = ["LOW", "Bound", "Decoder", "Density", "Discretised", "FlowLogp", "flow_logp", "vlb"]

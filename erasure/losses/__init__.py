"""Pure functions on tensors: what a training or a sampling is drawn towards."""

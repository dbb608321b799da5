"""Generative models: where a network, a process and a codec meet."""

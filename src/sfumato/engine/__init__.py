"""The engine: what turns a config into a run folder, and a run folder into a model."""

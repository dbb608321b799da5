"""Numbers that judge samples. Each names its features, and stands beside its floor and a trivial baseline."""

"""When a model does not learn: invariants, and the name of what breaks them. `doctor.py` has the list of checks."""

"""Training of a model, alone or as a member of an ensemble."""

"""What is inferred of a trial, given a model; and the fitted model."""

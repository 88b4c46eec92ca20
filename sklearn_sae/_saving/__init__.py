"""Fitted estimators and checkpoints as files that hold no code."""

"""Trials as given, and batches of them as the model wants them."""

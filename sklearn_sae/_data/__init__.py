"""Trials as users give them, and batches of trials as the model takes them."""

"""Inference of the latent variables of trials, given a model; and the fitted model."""

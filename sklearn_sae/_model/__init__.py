"""The generative model: dynamics, inputs, readout and likelihood; and the encoder."""

"""How a model is fitted, alone or as one of several."""

"""Pictures in scikit-learn's manner: Display classes with ``from_estimator`` and ``plot(ax=...)``.

matplotlib is imported only when something is drawn: ``pip install "sklearn_sae[plot]"``.
"""

from ._fixed_points import EigenvalueDisplay, FixedPointDisplay
from ._inputs import InferredInputsDisplay
from ._latent_dimension import LatentDimensionDisplay
from ._latents import LatentTrajectoryDisplay
from ._learning_curve import LearningCurveDisplay
from ._rates import RateDisplay
from ._vector_field import VectorFieldDisplay

__all__ = [
    "EigenvalueDisplay",
    "FixedPointDisplay",
    "InferredInputsDisplay",
    "LatentDimensionDisplay",
    "LatentTrajectoryDisplay",
    "LearningCurveDisplay",
    "RateDisplay",
    "VectorFieldDisplay",
]

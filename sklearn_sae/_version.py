"""The version, apart from all else, because files of saved estimators name it."""

__version__ = "0.1.0.dev0"

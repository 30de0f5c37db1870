"""The version, in a file of its own so that what stamps it into files need not import the front door."""

__version__ = "0.1.0.dev0"

"""The command line."""

from loraforge.cli.app import main as main

"""What each variant of CogVideoX runs with, and a comparison with a user's own settings."""

from loraforge.facts.given_settings import parse as parse
from loraforge.facts.setting_rules import compare as compare
from loraforge.facts.variants import settings as settings
from loraforge.facts.variants import table as table

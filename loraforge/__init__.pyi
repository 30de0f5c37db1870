"""What `loraforge` exports, and the modules that it is loaded from: read by type checkers, and by __init__.py."""

from loraforge._version import __version__ as __version__
from loraforge.adapter.adapter import Adapter as Adapter, Storage as Storage
from loraforge.base.convert_base import BaseReport as BaseReport, convert_base as convert_base
from loraforge.base.fuse import FuseReport as FuseReport, fuse as fuse
from loraforge.conversion.convert import convert as convert
from loraforge.diagnosis.inspect import Inspection as Inspection, inspect as inspect, skeleton as skeleton
from loraforge.conversion.read import read as read
from loraforge.conversion.report import Report as Report
from loraforge.conversion.stamp import Stamp as Stamp, stamp as stamp
from loraforge.conversion.verify import Verification as Verification, verify as verify
from loraforge.conversion.write import write as write
from loraforge.diagnosis.doctor import doctor as doctor
from loraforge.diagnosis.verdict import Diagnosis as Diagnosis
from loraforge.errors import LoraforgeError as LoraforgeError
from loraforge.format.keys import KeyStyle as KeyStyle, Spelling as Spelling
from loraforge.format.protocol import Format as Format
from loraforge.format.registry import formats as formats
from loraforge.fusion.backend import FusionBackend as FusionBackend
from loraforge.live.load_into import Loaded as Loaded, load_into as load_into
from loraforge.live.run import RunReport as RunReport, run as run
from loraforge.plugin.hooks import hookimpl as hookimpl
from loraforge.plugin.registry import use_plugin as use_plugin
from loraforge.publishing.push import PushReport as PushReport, push as push

"""Runs the command line in a process of its own, under watch: `child.py REPORT ARGUMENT...`.

Writes to REPORT what the process asked the system for that no conversion needs, and its peak of memory.
"""

import contextlib
import copyreg
import json
import sys
import time
from pathlib import Path

FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")
EXTENSIONS = {0x11: "EXT1", 0x1122: "EXT2", 0x11223344: "EXT4"}
MOST_MEMORY = 4 << 30

for code in EXTENSIONS:  # as a library may have done that the user imports
    if code == 0x11:
        copyreg.add_extension("os", "mkdir", code)
    else:
        copyreg._inverted_registry[code] = ("os", "mkdir")  # add_extension takes one code per name


def limits(file_size: int | None) -> None:
    """Keeps a bomb that works from taking the machine along; on Windows there is no such limit."""
    try:
        import resource
        import signal
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python does so too; then a write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def peak() -> int:
    """Megabytes this process had in memory at most; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():  # getrusage would count what the parent had when it forked
        return 0
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) >> 10


def ours(values: tuple[object, ...]) -> bool:
    """Whether it is loraforge's own matcher of patterns, and nothing a file could have named."""
    from loraforge.scale.peft_config import PROGRAM

    return list(values[1:2]) == [[sys.executable, "-I", "-S", "-c", PROGRAM]]


def main() -> None:
    report, file_size, *words = sys.argv[1:]
    events: list[str] = []
    sys.addaudithook(lambda event, values: events.append(event) if event in FORBIDDEN and not ours(values) else None)
    from loraforge.cli.app import main as command_line

    limits(int(file_size) if file_size else None)
    began = time.monotonic()
    try:
        command_line(words)
    finally:
        if not file_size:
            seen = {"events": events, "peak": peak(), "seconds": time.monotonic() - began}
            Path(report).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""``towpath record [FILTER]...``."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towpath.cli.command import Manual
from towpath.cli.output import count, say, socket_option
from towpath.signals import asked_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.api.captures import CaptureEntry
    from towpath.api.client import CaptureStream
    from towpath.datapath.recorder.file import CaptureFile
    from towpath.model.capture import Capture

EXAMPLES = {
    'towpath record "0.0.0.0/0 0 203.0.113.10/32 80 TCP" -w web.pcapng': "Clients of a VIP.",
    "towpath record --service web --packets 1000": "The same, by the service's name.",
    "towpath record --service web -w - | wireshark -k -i -": "Watch it live.",
    'towpath record "10.0.0.0/8 0 0 0 ANY" "0 0 10.0.0.0/8 8000-8100 UDP"': "Either of two.",
    "towpath record --flight 64M --on-down --again -w 'down-%F-%H%M%S.pcapng'": (
        "Always on: the last 64 MB before a backend was found down."
    ),
    "towpath record --snaplen 96 --sample 1/100 --time 60": "A share of all that comes.",
}
FILES = {
    "FILTER": (
        "SOURCE PORT DESTINATION PORT PROTOCOL: prefixes, ports or ranges (80-90), a protocol's"
        " name or number; 0 or ANY stands for anything. Packets that one of them matches."
    )
}
_REFRESH_SECONDS = 1.0
_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_UNIT = 1000
_NAME = "towpath-%Y%m%d-%H%M%S.pcapng"


class Sample(click.ParamType[int]):
    """1/N, or N."""

    name = "1/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return N."""
        text = str(value).removeprefix("1/")
        if not text.isdecimal() or not int(text):
            self.fail(f"{value!r}; allowed: 1/N, such as 1/100", param, ctx)
        return int(text)


class Size(click.ParamType[int]):
    """Bytes, or 64k, 64M, 1G."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        found = re.fullmatch(r"([0-9]{1,10})([kMG]?)", str(value), re.ASCII)
        if found is None:
            self.fail(f"{value!r}; allowed: bytes, or with k, M or G, such as 64M", param, ctx)
        return int(found[1]) << {"": 0, "k": 10, "M": 20, "G": 30}[found[2]]


@click.command(cls=Manual, examples=EXAMPLES, files=FILES)
@click.argument("filters", metavar="[FILTER]...", nargs=-1)
@click.option("--service", "services", multiple=True, metavar="NAME", help="Packets to a service.")
@click.option("--expr", "expression", default="", help="And only what this matches (pcap-filter).")
@click.option(
    "-w",
    "--write",
    "path",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="File to write, - for stdout.  [default: towpath-TIME.pcapng]",
)
@click.option("--snaplen", type=int, default=65535, help="Bytes of each frame to keep.")
@click.option("--packets", type=int, default=0, help="End after so many packets.")
@click.option("--bytes", "size", type=int, default=0, help="End after so many bytes of frames.")
@click.option("--time", "seconds", type=int, default=0, help="End after so many seconds.")
@click.option(
    "--direction",
    type=click.Choice(["distinct", "both", "in", "out"]),
    default="distinct",
    show_default=True,
    help="As they come in, as they are sent on, both; or both where addresses or ports differ.",
)
@click.option("--sample", type=Sample(), default=1, help="Keep one packet of N, at random.")
@click.option(
    "--flight",
    "keep",
    type=Size(),
    default=0,
    metavar="SIZE",
    help="Keep the last so many bytes (64M) and write them when it ends, not before.",
)
@click.option("--on-down", is_flag=True, help="With --flight: end when a backend is found down.")
@click.option(
    "--on-drops", type=int, default=0, help="With --flight: end at so many drops within a second."
)
@click.option(
    "--again", is_flag=True, help="With --flight: begin anew when it has ended, unless by a signal."
)
@socket_option
def record(
    filters: tuple[str, ...],
    services: tuple[str, ...],
    expression: str,
    path: Path | None,
    snaplen: int,
    packets: int,
    size: int,
    seconds: int,
    direction: str,
    sample: int,
    keep: int,
    on_down: bool,
    on_drops: int,
    again: bool,
    socket_path: Path,
) -> None:
    """Capture packets as they come in and as they are sent on, in pcapng.

    Each packet that comes in says what became of it: service, backend, verdict. What
    was sent on of it has the same packet id and the same flow; packets in a tunnel, or
    with another link header only, are there once unless --direction is both. Without
    FILTER, --service and --expr everything is captured. Ctrl-C ends it, and so does
    towpath recorder stop. With --flight %F and %T and the like (strftime) in FILE's name
    are when it begins.
    """
    from towpath.model.capture import parse_capture

    if again and not keep:
        raise click.UsageError("--again is for a capture that keeps what was last: with --flight")
    capture = parse_capture(
        {
            "filters": list(filters),
            "services": list(services),
            "expression": expression,
            "direction": direction,
            "snaplen": snaplen,
            "sample": sample,
            "packets": packets,
            "bytes": size,
            "seconds": seconds,
            "keep": keep,
            "on_down": on_down,
            "on_drops": on_drops,
        }
    )
    name = _NAME if path is None else str(path) if keep else str(path).replace("%", "%%")
    if again and time.strftime(name) == name:
        raise click.UsageError(
            f"--again writes one file after another: -w {name} needs a time, such as %T"
        )
    while _record_once(capture, name, socket_path, anew=again) and again:
        pass


def _record_once(capture: Capture, name: str, socket_path: Path, *, anew: bool) -> bool:
    """Write one file; whether it has ended though no signal asked for that.

    ``anew``: what is there is not replaced: it may be of a moment ago.
    """
    from towpath.api.client import Client
    from towpath.datapath.recorder.file import CaptureFile, CaptureFileError

    failure = ""
    with (
        Client(socket_path) as client,
        _ended_by_signal() as ends,
        client.record(capture) as stream,
    ):
        path = Path(time.strftime(name))
        if anew:
            path = _unused(path)
        if capture.keep:
            say(f"capture {stream.number} keeps the last {_size(capture.keep)}", error=True)
        with CaptureFile(path) as file, _progress(stream):
            ends(stream)
            try:
                _copy(stream, file)
            except CaptureFileError as error:
                failure = str(error)
        stream.close()
        entry = _final(client, stream.number)
    _report(entry, path)
    if failure:
        raise click.ClickException(failure)
    return not ends.asked


def _unused(path: Path) -> Path:
    """A path like this one that nothing is at: with -2 and so on before its suffix."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def _copy(stream: CaptureStream, file: CaptureFile) -> None:
    while data := stream.read():
        file.write(data)
    file.check()


def _final(client: Any, number: int) -> CaptureEntry:
    """What is said of the capture when it has ended, which may take a moment."""
    deadline = time.monotonic() + 5
    entry: CaptureEntry = client.capture(number)
    while not entry.ended and time.monotonic() < deadline:
        time.sleep(0.02)
        entry = client.capture(number)
    return entry


def _report(entry: CaptureEntry, path: Path) -> None:
    lines = [f"{_state(entry)}; to {path}" if str(path) != "-" else _state(entry)]
    if entry.lost:
        lines.append(f"{count(entry.lost)} frames were lost: they came faster than they were read")
    if entry.ended:
        lines.append(f"ended: {entry.ended}")
    say("\n".join(lines), error=True)


def _state(entry: CaptureEntry) -> str:
    return (
        f"{count(entry.packets)} packets of {count(entry.matched)} that match, "
        f"{count(entry.frames)} frames, {_size(entry.bytes)}, {count(entry.lost)} lost"
    )


def _size(number: float) -> str:
    for unit in _UNITS:
        if number < _UNIT or unit == _UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == _UNITS[0] else f"{number:.1f} {unit}"
        number /= _UNIT
    raise AssertionError


class _Ends:
    """Whether a signal has asked to end, and the capture that it is for, once that is known."""

    def __init__(self) -> None:
        self.asked = False
        self._begun: CaptureStream | None = None

    def __call__(self, stream: CaptureStream) -> None:
        """That is the one."""
        self._begun = stream
        if self.asked:
            self.stop()

    def stop(self) -> None:
        """Have it end."""
        from towpath.api.client import Client, ClientError

        if stream := self._begun:
            with suppress(ClientError), Client(stream.socket_path) as client:
                client.stop_capture(stream.number)


@contextmanager
def _ended_by_signal() -> Iterator[_Ends]:
    """A signal to end has the capture end that is given; the rest of the file still comes.

    One that comes before is remembered until then: the agent captures already when it says so. A
    second one doesn't wait for anything.
    """
    ends = _Ends()

    def end(number: int, frame: object) -> None:
        del number, frame
        for each in before:
            signal.signal(each, signal.default_int_handler)
        ends.asked = True
        ends.stop()

    before = {each: signal.getsignal(each) for each in asked_to_end()}
    for each in before:
        signal.signal(each, end)
    try:
        yield ends
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _progress(stream: CaptureStream) -> Iterator[None]:
    """Show how far it has come, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(stream, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        click.echo("\r\033[K", nl=False, err=True)


def _show(stream: CaptureStream, ended: threading.Event) -> None:
    from towpath.api.client import Client, ClientError

    with suppress(ClientError), Client(stream.socket_path) as client:
        while not ended.wait(_REFRESH_SECONDS):
            line = _state(client.capture(stream.number))
            click.echo(f"\r\033[K{line}", nl=False, err=True)

# SPDX-License-Identifier: Apache-2.0
"""Boots a kernel, runs one command in it, and says how that ended."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tools.kernels import initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.kernels.packages import Image

MEMORY_MIB = 1536


@dataclass(frozen=True, slots=True)
class Emulation:
    """How QEMU runs a guest, and how long it may take to come to its command."""

    options: tuple[str, ...]
    boot_seconds: float


# Emulated: KVM is not to be had everywhere, and the same everywhere is worth more.
QUICK = Emulation(("-accel", "tcg,thread=multi", "-smp", "2"), 90.0)
"""As fast as it goes."""
COUNTING = Emulation(
    ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-smp", "1"), 240.0
)
"""An instruction takes a nanosecond by all clocks of the guest; while it idles they leap."""
MACHINE = ("-machine", "q35,memory-backend=memory")
# No more than numpy's wheels want (x86-64-v2): wider vectors, which the C library would then use,
# cost an emulator a fifth more.
MODEL = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
CPU = ("-cpu", MODEL, "-m", str(MEMORY_MIB))
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
    "random.trust_cpu=on cryptomgr.notests lsm=capability audit=0"
)
# An emulated kernel sometimes trips over the code that it patches, above all while it boots: QEMU's
# CPUs don't see each other's changed instructions as real ones do. It is booted again then. What
# goes wrong otherwise once the command has begun is never tried again.
BOOTS = 3
_TRIPPED = "Oops: int3"  # the byte that stands there while the kernel patches
# Of those that QEMU has and that Debian's kernels for virtual machines have drivers for, the one
# that takes VLAN tags off frames.
NIC = "vmxnet3"
NIC_MACS = ("02:00:00:00:77:00", "02:00:00:00:77:01")
_SOCKET_SECONDS = 10
_LOOK_SECONDS = 2.0
_CONSOLE_LINES = 40

Ending = Literal["done", "panic", "hang", "no boot"]


class GuestError(Exception):
    """A guest can't be started here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command in a guest ended. ``code`` is its exit code where it was ``done``."""

    ending: Ending
    code: int | None
    output: str
    console: str
    seconds: float
    started: bool
    """Whether the kernel came to the command."""

    @property
    def emulated_wrongly(self) -> bool:
        """Whether it says more of QEMU than of what ran in it."""
        return not self.started or (self.ending == "panic" and _TRIPPED in self.console)

    @property
    def ok(self) -> bool:
        """Whether the command ran and said so."""
        return self.ending == "done" and self.code == 0

    def explained(self) -> str:
        """Return one paragraph for whoever has to mend it."""
        if self.ending == "done":
            return f"exit code {self.code}"
        lines = self.console.strip().splitlines()
        start = next((i for i, line in enumerate(lines) if _is_trouble(line)), len(lines))
        useful = lines[max(0, start - 2) : start + _CONSOLE_LINES] or lines[-_CONSOLE_LINES:]
        said = {"panic": "the kernel panicked", "hang": "no end in time", "no boot": "didn't boot"}
        return "\n".join([f"{said[self.ending]} after {self.seconds:.0f} s; console:", *useful])


def _is_trouble(line: str) -> bool:
    return any(word in line for word in ("Kernel panic", "BUG:", "Oops", "general protection"))


def run(
    image: Image,
    command: Sequence[str],
    results: Path,
    *,
    timeout: float,
    arguments: str = "",
    emulation: Emulation = QUICK,
) -> Outcome:
    """Run a command inside a kernel, in this working directory.

    ``results`` is a directory that the guest sees as /results and may write to. ``timeout`` is
    in seconds, for one boot. ``arguments`` are further ones for the kernel. ``emulation`` is QUICK
    or COUNTING. GuestError: QEMU or virtiofsd are missing.
    """
    for _ in range(BOOTS):
        outcome = _boot(image, command, results, timeout, arguments, emulation)
        if not outcome.emulated_wrongly:
            break
    return outcome


def _boot(
    image: Image,
    command: Sequence[str],
    results: Path,
    timeout: float,
    arguments: str,
    emulation: Emulation,
) -> Outcome:
    began = time.monotonic()
    results.mkdir(parents=True, exist_ok=True)
    for old in ("exit", "output", "console", "booted"):
        (results / old).unlink(missing_ok=True)
    _write_script(results, command)
    with ExitStack() as undo:
        sockets = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="towpath-guest-")))
        initrd = sockets / "initramfs"
        initramfs.build(image, initrd)
        shares = {"root": Path("/"), "results": results}
        for tag, path in shares.items():
            undo.enter_context(_share(path, sockets / tag, writable=tag == "results"))
        words = _qemu(image, initrd, {tag: sockets / tag for tag in shares}, results, arguments)
        qemu = subprocess.Popen([*words, *emulation.options], stdin=subprocess.DEVNULL)
        in_time = _wait(qemu, timeout, results, emulation.boot_seconds)
    return _outcome(results, in_time=in_time, seconds=time.monotonic() - began)


def _write_script(results: Path, command: Sequence[str]) -> None:
    here = shlex.quote(os.getcwd())  # noqa: PTH109 - as the shell has it
    (results / "run").write_text(
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        "export HOME=/tmp LC_ALL=C.UTF-8 TOWPATH_GUEST=1 PYTHONDONTWRITEBYTECODE=1\n"
        f"cd {here}; touch /results/booted\n"
        f"{shlex.join(command)} >/results/output 2>&1\n"
        "echo $? >/results/exit.part; mv /results/exit.part /results/exit; sync\n"
        "busybox poweroff -f\n"
    )


@contextmanager
def _share(path: Path, socket: Path, *, writable: bool) -> Iterator[None]:
    """Offer a directory to the guest by virtiofs."""
    daemon = next((each for each in map(shutil.which, _VIRTIOFSD) if each), None)
    if daemon is None:
        raise GuestError("virtiofsd is not installed; it is in virtiofsd or qemu-system-common")
    process = subprocess.Popen(
        [daemon, f"--socket-path={socket}", *_virtiofsd_options(daemon, path, writable=writable)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(socket, process)
        yield
    finally:
        process.terminate()
        process.wait()


_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "virtiofsd")


def _virtiofsd_options(daemon: str, path: Path, *, writable: bool) -> list[str]:
    """QEMU's own in C (up to 7.2) and its successor in Rust speak two languages."""
    cache = "auto" if writable else "always"
    if daemon == _VIRTIOFSD[0]:
        return ["-o", f"source={path},sandbox=chroot,cache={cache}", "--thread-pool-size=0"]
    return [f"--shared-dir={path}", "--sandbox=chroot", f"--cache={cache}", "--thread-pool-size=0"]


def _wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SOCKET_SECONDS
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise GuestError(f"virtiofsd made no {socket}, exit code {process.poll()}")
        time.sleep(0.01)


def _qemu(
    image: Image, initrd: Path, sockets: dict[str, Path], results: Path, arguments: str
) -> list[str]:
    binary = shutil.which("qemu-system-x86_64")
    if binary is None:
        raise GuestError("qemu-system-x86_64 is not installed; it is in qemu-system-x86")
    words = [binary, "-nodefaults", "-no-user-config", *MACHINE, *CPU, "-display", "none"]
    words += ["-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"]
    words += ["-no-reboot", "-kernel", str(image.kernel), "-initrd", str(initrd)]
    words += ["-append", f"{KERNEL_ARGUMENTS} {arguments}", "-serial", f"file:{results}/console"]
    words += ["-device", "virtio-serial-pci", "-device", "virtio-rng-pci"]
    words += [
        "-chardev",
        f"file,id=said,path={results}/said",
        "-device",
        "virtconsole,chardev=said",
    ]
    words += _nics()
    for tag, socket in sockets.items():
        words += ["-chardev", f"socket,id={tag},path={socket}"]
        words += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    return words


def _nics() -> list[str]:
    """Two network cards with a wire between them, for who loads their driver."""
    words = []
    for number in (0, 1):
        words += ["-netdev", f"hubport,id=end{number},hubid=0"]
        words += ["-device", f"{NIC},netdev=end{number},mac={NIC_MACS[number]}"]
    return words


def _wait(
    process: subprocess.Popen[bytes], timeout: float, results: Path, boot_seconds: float
) -> bool:
    """Return whether the guest ended by itself. One that doesn't come to its command need not.

    Nor one whose kernel has panicked: it should, but may hang where it stops its other CPU.
    """
    ends = time.monotonic() + timeout
    boots = time.monotonic() + boot_seconds
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
                return True
            now = time.monotonic()
            booted = (results / "booted").exists()
            if now > ends or (now > boots and not booted) or _panicked(results):
                return False
    finally:
        process.kill()
        process.wait()


def _panicked(results: Path) -> bool:
    """Whether the kernel said so a while ago."""
    console = results / "console"
    return (
        console.exists()
        and time.time() - console.stat().st_mtime > _LOOK_SECONDS
        and "Kernel panic" in console.read_text(errors="replace")
    )


def _outcome(results: Path, *, in_time: bool, seconds: float) -> Outcome:
    def read(name: str) -> str:
        path = results / name
        return path.read_text(errors="replace") if path.exists() else ""

    console, code = read("console") + read("said"), read("exit").strip()
    started = (results / "booted").exists()
    ending: Ending = "done"
    if not code:
        hung = started or not in_time
        ending = "panic" if "Kernel panic" in console else "hang" if hung else "no boot"
    return Outcome(ending, int(code) if code else None, read("output"), console, seconds, started)

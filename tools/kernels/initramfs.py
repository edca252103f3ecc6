# SPDX-License-Identifier: Apache-2.0
"""A small initramfs: it mounts the host's root below an overlay and goes there."""

from __future__ import annotations

import lzma
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.kernels.packages import Image

MODULES = ("virtiofs", "virtio_console", "overlay", "virtio_pci")
BUSYBOX = Path("/bin/busybox")

# The guest's userspace is the host's, read-only, with what it writes in memory.
# /results is the one place whose writes reach the host. The working directory is
# to be seen even if it is where the guest has something of its own, such as in /tmp.
INIT = """#!/bin/sh
PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read module; do insmod /modules/$module || echo "insmod $module failed"; done </modules/order
here=@HERE@
mkdir -p /lower /memory /new /here
mount -t virtiofs -o ro root /lower || poweroff -f
mount -t tmpfs -o mode=755 memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /new
mount -o bind "/new$here" /here
for dir in proc sys dev; do mount --move /$dir /new/$dir; done
mkdir -p /new/dev/shm /new/dev/pts /new/results /new/lib/modules
mount -t tmpfs run /new/run
mount -t tmpfs shm /new/dev/shm
mount -t tmpfs tmp /new/tmp
mount -t devpts devpts /new/dev/pts
mount -t tmpfs modules /new/lib/modules
mkdir -p /new/lib/modules/$(uname -r) /new/run/netns
mount -o bind /lower@MODULES@ /new/lib/modules/$(uname -r)
mount -t virtiofs results /new/results
mkdir -p "/new$here"
mount --move /here "/new$here"
ln -s /proc/self/fd /new/dev/fd
mount -t bpf bpf /new/sys/fs/bpf
mount -t debugfs debug /new/sys/kernel/debug
mount -t cgroup2 cgroup /new/sys/fs/cgroup
ip link set lo up
exec chroot /new /bin/sh /results/run >/new/dev/hvc0 2>&1 </new/dev/null
"""


def build(image: Image, target: Path) -> None:
    """Write the initramfs of a kernel, and for this working directory, to ``target``."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for each in ("bin", "dev", "proc", "sys", "modules"):
            (root / each).mkdir()
        shutil.copy(BUSYBOX, root / "bin/busybox")
        for applet in _applets():
            (root / "bin" / applet).symlink_to("busybox")
        _copy_modules(image, root / "modules")
        init = root / "init"
        here = shlex.quote(str(Path.cwd()))
        init.write_text(INIT.replace("@MODULES@", str(image.modules)).replace("@HERE@", here))
        init.chmod(0o755)
        _pack(root, target)


def _applets() -> list[str]:
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    return [applet for applet in listed.stdout.split() if applet != "busybox"]


def _copy_modules(image: Image, target: Path) -> None:
    """Copy what has to be loaded before there is a root, in the order of loading."""
    order: list[str] = []
    for name in MODULES:
        for path in _with_dependencies(image, name):
            if path.name not in order:
                order.append(path.name)
                content = path.read_bytes()
                unpacked = lzma.decompress(content) if path.suffix == ".xz" else content
                (target / path.name).write_bytes(unpacked)
    (target / "order").write_text("".join(f"{name}\n" for name in order))


def _with_dependencies(image: Image, module: str) -> list[Path]:
    shown = subprocess.run(
        ["/sbin/modprobe", "-d", image.root, "-S", image.release, "--show-depends", module],
        capture_output=True,
        text=True,
        check=False,
    )
    # What isn't found is built in: a kernel that really lacks it doesn't find its root.
    words = (line.split() for line in shown.stdout.splitlines())
    return [Path(each[1]) for each in words if each[0] == "insmod"]


def _pack(root: Path, target: Path) -> None:
    names = b"\0".join(str(path.relative_to(root)).encode() for path in root.rglob("*"))
    packed = subprocess.run(
        [BUSYBOX, "cpio", "-o", "-0", "-H", "newc"],
        cwd=root,
        input=names,
        capture_output=True,
        check=True,
    )
    target.write_bytes(packed.stdout)

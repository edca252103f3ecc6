# SPDX-License-Identifier: Apache-2.0
"""What errors say."""

from __future__ import annotations

import errno

from towpath.kernel.errors import KernelError, LayoutError, VerifierError, errno_name


def test_message_has_what_which_why_and_what_to_do() -> None:
    """One line: the attempt, the error with its name, the hint."""
    error = KernelError("load lb.bpf.o", errno.EPERM, "needs CAP_BPF")
    assert str(error) == "load lb.bpf.o: Operation not permitted (EPERM): needs CAP_BPF"
    assert (error.what, error.errno, error.hint) == ("load lb.bpf.o", 1, "needs CAP_BPF")


def test_errors_without_a_number_have_no_number() -> None:
    """What isn't a system call's failure has no error name."""
    assert str(KernelError("no such device: eth9", hint="there are: lo")) == (
        "no such device: eth9: there are: lo"
    )


def test_verifier_error_keeps_the_log_out_of_the_message() -> None:
    """The message is the summary; the log is there for who asks."""
    error = VerifierError("load x", errno.EACCES, "R1 is bad", "0: lots\n1: of it\n")
    assert str(error) == "load x: Permission denied (EACCES): R1 is bad"
    assert error.log.startswith("0: lots")


def test_layout_error_names_all_differences() -> None:
    """The message has them all, and so has the exception."""
    error = LayoutError("map flows can't be reused", ["key is u8", "value.x is missing"])
    assert str(error) == "map flows can't be reused: key is u8; value.x is missing"
    assert error.differences == ["key is u8", "value.x is missing"]


def test_error_names_are_linux_ones() -> None:
    """Numbers that libc lacks or names twice get the kernel's name."""
    names = {number: errno_name(number) for number in (1, 95, 524, 9999)}
    assert names == {1: "EPERM", 95: "EOPNOTSUPP", 524: "ENOTSUPP", 9999: "9999"}

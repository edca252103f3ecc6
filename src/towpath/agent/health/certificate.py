# SPDX-License-Identifier: Apache-2.0
"""What is of interest in a certificate. Imported where TLS is checked: the library takes 8 MiB."""

from __future__ import annotations

from cryptography.x509 import load_der_x509_certificate


def expires(certificate: bytes) -> float | None:
    """Return when it is no longer valid, in seconds since 1970; None: it can't be read."""
    try:
        return load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except ValueError:
        return None

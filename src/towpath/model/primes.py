# SPDX-License-Identifier: Apache-2.0
"""Primes, which is what Maglev table sizes have to be."""

# Deterministic for every number below 3,215,031,751 (Pomerance, Selfridge and
# Wagstaff 1980), far above the largest table.
_WITNESSES = (2, 3, 5, 7)


def is_prime(number: int) -> bool:
    """Tell whether ``number`` (below 3.2e9) is a prime."""
    if number <= 1:
        return False
    if any(number % small == 0 for small in _WITNESSES):
        return number in _WITNESSES
    odd = number - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    return all(_probably_prime(number, base, odd, twos) for base in _WITNESSES)


def _probably_prime(number: int, base: int, odd: int, twos: int) -> bool:
    """One Miller-Rabin round; ``number - 1 == odd << twos``."""
    power = pow(base, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False


def prime_at_least(number: int) -> int:
    """Return the smallest prime that is not below ``number``."""
    while not is_prime(number):
        number += 1
    return number


def prime_at_most(number: int) -> int:
    """Return the largest prime that is not above ``number`` (which is at least 2)."""
    while not is_prime(number):
        number -= 1
    return number

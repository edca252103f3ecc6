# SPDX-License-Identifier: Apache-2.0
"""Records of one version of a struct as another one, field by field.

What both have is copied by its name, however it has moved; what only one has is
left out, or is 0. An array that got longer has zeros behind, one that got shorter
loses its end. Byte order is the type's own business: numbers stay numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Dtype = np.dtype[Any]


def converted(rows: Array, dtype: Dtype) -> Array:
    """Return a copy of ``rows`` whose elements have ``dtype``.

    ValueError: a field is a number here and a struct there.
    """
    made = np.zeros(rows.shape, dtype)
    assign(made, rows)
    return made


def assign(target: Array, source: Array) -> None:
    """Store ``source`` in ``target``, of the same shape but for what dtypes add to it."""
    names, others = target.dtype.names, source.dtype.names
    if (names is None) != (others is None):
        raise ValueError(f"{source.dtype} can't be made {target.dtype}")
    common = tuple(slice(min(pair)) for pair in zip(target.shape, source.shape, strict=True))
    if names is None or others is None:
        target[common] = source[common]
        return
    for name in names:
        # Room that is left has no content, and may be several elements in one and one in the other.
        if name in others and not name.startswith("_reserved"):
            assign(target[common][name], source[common][name])

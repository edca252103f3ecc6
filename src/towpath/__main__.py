# SPDX-License-Identifier: Apache-2.0
"""``python -m towpath`` is the ``towpath`` command."""

from towpath.cli.main import main

if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What is desired and who wishes it: kept in a database, carried out by one thread."""

/* SPDX-License-Identifier: Apache-2.0 */
/* The library shows what Python calls and nothing else: all other names are its own. */
#ifndef TOWPATH_NATIVE_PUBLIC_H
#define TOWPATH_NATIVE_PUBLIC_H

#define PUBLIC __attribute__((visibility("default")))

#endif

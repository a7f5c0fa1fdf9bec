// SPDX-License-Identifier: GPL-2.0
/* Each module has its own, as Kbuild makes no object for two. */
#include "../../bindings/helpers.c"

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What src/dm/ needs of the kernel beyond the kernel crate's own bindings.
 * Kbuild runs bindgen over this; functions that are inline in C are in helpers.c.
 */
#include <linux/hrtimer_types.h>
#include <linux/blk_types.h>
#include <linux/crc32.h>
#include <linux/device-mapper.h>
#include <linux/rcupdate.h>
#include <linux/timekeeping.h>

#include "helpers.h"

/* Constants whose macros bindgen cannot evaluate (same trick as rust/bindings). */
const blk_status_t RUST_CONST_HELPER_BLK_STS_NOTSUPP = BLK_STS_NOTSUPP;
const blk_status_t RUST_CONST_HELPER_BLK_STS_MEDIUM = BLK_STS_MEDIUM;
const blk_status_t RUST_CONST_HELPER_BLK_STS_RESOURCE = BLK_STS_RESOURCE;
const blk_status_t RUST_CONST_HELPER_BLK_STS_IOERR = BLK_STS_IOERR;
const blk_status_t RUST_CONST_HELPER_BLK_STS_TARGET = BLK_STS_TARGET;
const blk_status_t RUST_CONST_HELPER_BLK_STS_AGAIN = BLK_STS_AGAIN;
const blk_status_t RUST_CONST_HELPER_BLK_STS_TRANSPORT = BLK_STS_TRANSPORT;
const blk_opf_t RUST_CONST_HELPER_REQ_FUA = REQ_FUA;
const blk_opf_t RUST_CONST_HELPER_REQ_PREFLUSH = REQ_PREFLUSH;
const blk_opf_t RUST_CONST_HELPER_REQ_SYNC = REQ_SYNC;
const blk_opf_t RUST_CONST_HELPER_REQ_META = REQ_META;
const blk_opf_t RUST_CONST_HELPER_REQ_NOWAIT = REQ_NOWAIT;
const blk_opf_t RUST_CONST_HELPER_REQ_RAHEAD = REQ_RAHEAD;
const blk_opf_t RUST_CONST_HELPER_REQ_POLLED = REQ_POLLED;
const blk_opf_t RUST_CONST_HELPER_REQ_ATOMIC = REQ_ATOMIC;
const blk_opf_t RUST_CONST_HELPER_REQ_OP_MASK = REQ_OP_MASK;
const blk_mode_t RUST_CONST_HELPER_BLK_OPEN_WRITE = BLK_OPEN_WRITE;
const blk_features_t RUST_CONST_HELPER_BLK_FEAT_POLL = BLK_FEAT_POLL;
const u32 RUST_CONST_HELPER_DM_MAPIO_SUBMITTED = DM_MAPIO_SUBMITTED;
const u32 RUST_CONST_HELPER_DM_MAPIO_REMAPPED = DM_MAPIO_REMAPPED;
const u32 RUST_CONST_HELPER_DM_ENDIO_DONE = DM_ENDIO_DONE;
const u32 RUST_CONST_HELPER_DM_ENDIO_INCOMPLETE = DM_ENDIO_INCOMPLETE;
const u32 RUST_CONST_HELPER_DM_TARGET_NOWAIT = DM_TARGET_NOWAIT;

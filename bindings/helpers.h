/* SPDX-License-Identifier: GPL-2.0 */
/* Inline functions and macros of the kernel, made callable from Rust. Nothing but glue. */
#ifndef DM_REMAP_HELPERS_H
#define DM_REMAP_HELPERS_H

#include <linux/device-mapper.h>
#include <linux/workqueue.h>

void dmr_bio_add_virt(struct bio *bio, void *data, unsigned int len);
void dmr_bio_add_zeroes(struct bio *bio, unsigned int len);
struct workqueue_struct *dmr_alloc_workqueue(const char *name, const char *instance);
unsigned int dmr_memalloc_noio_save(void);
void dmr_memalloc_noio_restore(unsigned int flags);
void dmr_preempt_disable(void);
void dmr_preempt_enable(void);
sector_t dmr_bdev_nr_sectors(struct block_device *bdev);
unsigned int dmr_bdev_logical_block_size(struct block_device *bdev);
unsigned int dmr_bdev_physical_block_size(struct block_device *bdev);
unsigned int dmr_bdev_max_discard_sectors(struct block_device *bdev);
unsigned int dmr_bdev_write_zeroes_sectors(struct block_device *bdev);
bool dmr_bdev_is_zoned(struct block_device *bdev);
bool dmr_bdev_write_cache(struct block_device *bdev);
const char *dmr_bdev_partition_uuid(struct block_device *bdev);
int dmr_bdev_unique_id(struct block_device *bdev, u8 *id, unsigned int type);
bool dmr_fatal_signal_pending(void);
bool dmr_ratelimit(void);
u64 *dmr_alloc_counters(size_t count);
void dmr_free_counters(u64 *counters);
void dmr_count(u64 *counter);
u64 dmr_sum_counter(const u64 *counter);
void dmr_init_work(struct work_struct *work, work_func_t func);
void dmr_init_delayed_work(struct delayed_work *work, work_func_t func);

#endif

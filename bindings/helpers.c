// SPDX-License-Identifier: GPL-2.0
#include "helpers.h"

#include <linux/percpu.h>
#include <linux/ratelimit.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>

/* @data: in the direct mapping (kmalloc), @bio: with room for it. */
void dmr_bio_add_virt(struct bio *bio, void *data, unsigned int len)
{
	bio_add_virt_nofail(bio, data, len);
}

/* @len: at most a page. */
void dmr_bio_add_zeroes(struct bio *bio, unsigned int len)
{
	__bio_add_page(bio, ZERO_PAGE(0), len, 0);
}

struct workqueue_struct *dmr_alloc_workqueue(const char *name, const char *instance)
{
	return alloc_workqueue("dm-%s/%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 0, name, instance);
}

unsigned int dmr_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

void dmr_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

void dmr_preempt_disable(void)
{
	preempt_disable();
}

void dmr_preempt_enable(void)
{
	preempt_enable();
}

sector_t dmr_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

unsigned int dmr_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

unsigned int dmr_bdev_physical_block_size(struct block_device *bdev)
{
	return bdev_physical_block_size(bdev);
}

unsigned int dmr_bdev_max_discard_sectors(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev);
}

unsigned int dmr_bdev_write_zeroes_sectors(struct block_device *bdev)
{
	return bdev_write_zeroes_sectors(bdev);
}

bool dmr_bdev_is_zoned(struct block_device *bdev)
{
	return bdev_is_zoned(bdev);
}

bool dmr_bdev_write_cache(struct block_device *bdev)
{
	return bdev_write_cache(bdev);
}

/* Returns NULL for what is no partition, or one without a UUID. */
const char *dmr_bdev_partition_uuid(struct block_device *bdev)
{
	return bdev->bd_meta_info ? bdev->bd_meta_info->uuid : NULL;
}

/* @id: room for 16 bytes, @type: of enum blk_unique_id. Returns how many there are, or a negative error. */
int dmr_bdev_unique_id(struct block_device *bdev, u8 *id, unsigned int type)
{
	struct gendisk *disk = bdev->bd_disk;

	if (!disk->fops->get_unique_id)
		return -EOPNOTSUPP;
	return disk->fops->get_unique_id(disk, id, type);
}

bool dmr_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

bool dmr_ratelimit(void)
{
	static DEFINE_RATELIMIT_STATE(state, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&state);
}

/* A counter is a u64 per CPU; Rust has no name for per-CPU pointers. */
#define PER_CPU(counter) ((u64 __percpu *)(__force unsigned long)(counter))

u64 *dmr_alloc_counters(size_t count)
{
	return (u64 *)(__force unsigned long)__alloc_percpu(count * sizeof(u64), __alignof__(u64));
}

void dmr_free_counters(u64 *counters)
{
	free_percpu(PER_CPU(counters));
}

void dmr_count(u64 *counter)
{
	this_cpu_inc(*PER_CPU(counter));
}

u64 dmr_sum_counter(const u64 *counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(PER_CPU(counter), cpu));
	return sum;
}

void dmr_init_work(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
}

void dmr_init_delayed_work(struct delayed_work *work, work_func_t func)
{
	INIT_DELAYED_WORK(work, func);
}

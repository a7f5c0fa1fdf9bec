// SPDX-License-Identifier: GPL-2.0
/*
 * What look-ups in the kernel's own trees cost, to compare with: fills one of them with units as keys, prints the
 * nanoseconds for each look-up, which are instructions under scripts/vm --icount, and keeps it until it is unloaded,
 * so that memory can be looked at. Only for measuring.
 */
#include <linux/ktime.h>
#include <linux/maple_tree.h>
#include <linux/module.h>
#include <linux/xarray.h>

static int count = 1000;
module_param(count, int, 0444);
static int run = 1;
module_param(run, int, 0444);
MODULE_PARM_DESC(run, "entries side by side");
static bool maple;
module_param(maple, bool, 0444);

#define UNITS (1UL << 28)
/* Not more than there are runs with 1,000 entries in runs of 64. */
#define HITS 15
#define PROBES 10000

static DEFINE_XARRAY(xa);
static struct maple_tree mt = MTREE_INIT(mt, 0);
static u64 state = 0x9e3779b97f4a7c15;

static unsigned long next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % UNITS;
}

static noinline void *look_up(unsigned long unit)
{
	return maple ? mtree_load(&mt, unit) : xa_load(&xa, unit);
}

static u64 look_ups(bool hits, unsigned long *found)
{
	u64 start, before = state;
	unsigned long sum = 0;
	int i;

	if (hits)
		state = 0x9e3779b97f4a7c15;
	start = ktime_get_ns();
	for (i = 0; i < (hits ? HITS : PROBES); i++)
		sum += !!look_up(hits ? next() / run * run : next());
	start = ktime_get_ns() - start;
	*found = sum;
	state = before;
	return start;
}

static int __init trees_init(void)
{
	unsigned long found, hit, unit;
	u64 loop, miss, yes, filled = ktime_get_ns();
	int i, j;

	for (i = 0; i < count; i += run) {
		unit = next() / run * run;
		for (j = 0; j < run; j++) {
			void *entry = xa_mk_value(unit + j);
			int error = maple ? mtree_store(&mt, unit + j, entry, GFP_KERNEL) :
					    xa_err(xa_store(&xa, unit + j, entry, GFP_KERNEL));

			if (error) {
				mtree_destroy(&mt);
				xa_destroy(&xa);
				return error;
			}
		}
		if (i % 4096 == 0)
			cond_resched();
	}
	filled = ktime_get_ns() - filled;
	loop = ktime_get_ns();
	for (i = 0; i < PROBES; i++) {
		unit = next();
		OPTIMIZER_HIDE_VAR(unit);
	}
	loop = ktime_get_ns() - loop;
	look_ups(true, &hit);
	yes = look_ups(true, &hit);
	miss = look_ups(false, &found);
	pr_info("trees: %s, %d entries in runs of %d: store %llu, healthy %llu (%lu of %d were not), hit %llu\n",
		maple ? "maple tree" : "XArray", count, run, filled / count, (miss - loop) / PROBES, found, PROBES,
		(yes - loop * HITS / PROBES) / HITS);
	return 0;
}

static void __exit trees_exit(void)
{
	mtree_destroy(&mt);
	xa_destroy(&xa);
}

module_init(trees_init);
module_exit(trees_exit);
MODULE_DESCRIPTION("Look-ups in the kernel's trees, measured");
MODULE_LICENSE("GPL");

// SPDX-License-Identifier: GPL-2.0
/*
 * Runs the KUnit suites in the module on a kernel that has no KUnit, as distributions' kernels have none: what lib/kunit
 * does, as far as Rust tests need it. (KUnit itself cannot be added to a kernel: it is told of suites by `struct module`,
 * and of the test that a thread runs by `struct task_struct`, both of which are larger with it.)
 *
 * Whatever is written to /sys/module/dm_remap/parameters/kunit starts them; the results are in the kernel log.
 */
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/moduleparam.h>

extern struct kunit_suite *dmr_suites[], *dmr_suites_end[];
struct kunit *rust_helper_kunit_get_current_test(void);

static struct kunit test;
static struct task_struct *task;
static DECLARE_COMPLETION(done);

/* In place of the kernel's own, which knows of no test. */
struct kunit *rust_helper_kunit_get_current_test(void)
{
	return READ_ONCE(task) == current ? &test : NULL;
}

void kunit_unary_assert_format(const struct kunit_assert *assert, const struct va_format *message,
			       struct string_stream *stream)
{
}

void __kunit_do_failed_assertion(struct kunit *test, const struct kunit_loc *loc,
				 enum kunit_assert_type type, const struct kunit_assert *assert,
				 assert_format_t format, const char *fmt, ...)
{
	pr_err("    # ASSERTION FAILED at %s:%d: %s\n", loc->file, loc->line,
	       container_of(assert, struct kunit_unary_assert, assert)->condition);
	test->status = KUNIT_FAILURE;
}

void __noreturn __kunit_abort(struct kunit *test)
{
	kthread_complete_and_exit(&done, 0);
}

static int run_case(void *test_case)
{
	((struct kunit_case *)test_case)->run_case(&test);
	kthread_complete_and_exit(&done, 0);
}

/* Returns whether it passed, or was skipped. */
static bool run(struct kunit_case *test_case, int number)
{
	struct task_struct *thread = kthread_create(run_case, test_case, "dm_remap_kunit");

	if (IS_ERR(thread))
		return false;
	test.status = KUNIT_SUCCESS;
	reinit_completion(&done);
	WRITE_ONCE(task, thread);
	wake_up_process(thread);
	wait_for_completion(&done);
	pr_info("    %sok %d %s%s\n", test.status == KUNIT_FAILURE ? "not " : "", number,
		test_case->name, test.status == KUNIT_SKIPPED ? " # SKIP" : "");
	return test.status != KUNIT_FAILURE;
}

static int run_suites(const char *value, const struct kernel_param *param)
{
	struct kunit_suite **suite;
	struct kunit_case *test_case;

	pr_info("KTAP version 1\n1..%td\n", dmr_suites_end - dmr_suites);
	for (suite = dmr_suites; suite < dmr_suites_end; suite++) {
		int cases = 0;
		bool passed = true;

		for (test_case = (*suite)->test_cases; test_case->run_case; test_case++)
			cases++;
		pr_info("    KTAP version 1\n    # Subtest: %s\n    1..%d\n", (*suite)->name, cases);
		for (int i = 0; i < cases; i++)
			passed &= run(&(*suite)->test_cases[i], i + 1);
		pr_info("%sok %td %s\n", passed ? "" : "not ", suite - dmr_suites + 1, (*suite)->name);
	}
	return 0;
}

module_param_call(kunit, run_suites, NULL, NULL, 0200);

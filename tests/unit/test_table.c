/* Nodes by number: lib/table.h, against an array of what has to be in it. */
#include "lib/table.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/allocations.h"

#define IDS 3000

struct entry {
	struct wfs_node node;
	uint64_t value;
};

static size_t freed;

static void free_entry(struct wfs_node *node)
{
	free(node);
	freed++;
}

static struct entry *add(struct wfs_table *t, uint64_t id, uint64_t value)
{
	struct entry *e = malloc(sizeof(*e));

	assert_non_null(e);
	e->node.id = id;
	e->value = value;
	wfs_table_add(t, &e->node);
	return e;
}

static void count(void *ctx, const struct wfs_node *node)
{
	((unsigned *)ctx)[((const struct entry *)node)->value]++;
}

/* Numbers in order, all in one bucket, and like hashes. */
static const uint64_t steps[] = { 1, UINT64_C(1) << 40, 0x9e3779b97f4a7c15 };

static void check(const struct wfs_table *t, uint64_t step, struct entry *const *wanted)
{
	unsigned seen[IDS] = { 0 };
	size_t n = 0;

	wfs_table_each(t, count, seen);
	for (uint64_t i = 0; i < IDS; i++) {
		assert_ptr_equal(wfs_table_find(t, i * step), wanted[i]);
		assert_int_equal(seen[i], wanted[i] != NULL);
		n += wanted[i] != NULL;
	}
	assert_int_equal(t->n, n);
	assert_null(wfs_table_find(t, IDS * step));
}

static void change_at_random(uint64_t step)
{
	struct entry *wanted[IDS] = { NULL };
	struct wfs_table t;
	uint64_t random = 88172645463325252;
	size_t left;

	assert_int_equal(wfs_table_init(&t), 0);
	for (unsigned round = 0; round < 20 * IDS; round++) {
		uint64_t i;

		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		i = random % IDS;
		if (wanted[i]) {
			wfs_table_remove(&t, &wanted[i]->node);
			free(wanted[i]);
			wanted[i] = NULL;
		} else {
			wanted[i] = add(&t, i * step, i);
		}
		if (round % IDS == 0)
			check(&t, step, wanted);
	}
	check(&t, step, wanted);
	left = t.n;
	freed = 0;
	wfs_table_release(&t, free_entry);
	assert_int_equal(freed, left);
}

static void test_any_order(void **state)
{
	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(steps); i++)
		change_at_random(steps[i]);
}

static void test_buckets_follow(void **state)
{
	struct wfs_table t;

	(void)state;
	assert_int_equal(wfs_table_init(&t), 0);
	for (uint64_t id = 0; id < IDS; id++)
		add(&t, id, id);
	assert_in_range(t.n_buckets, IDS, 2 * IDS);
	wfs_table_release(&t, free_entry);
}

static void test_without_memory(void **state)
{
	struct entry *entries[IDS];
	struct wfs_table t;

	(void)state;
	allocations_left = 0;
	assert_int_equal(wfs_table_init(&t), -ENOMEM);
	allocations_left = -1;
	wfs_table_release(&t, free_entry);
	assert_int_equal(wfs_table_init(&t), 0);
	for (uint64_t id = 0; id < IDS; id++) {
		entries[id] = malloc(sizeof(*entries[id]));
		assert_non_null(entries[id]);
		*entries[id] = (struct entry){ { .id = id }, id };
	}
	allocations_left = 0; /* it cannot grow */
	for (uint64_t id = 0; id < IDS; id++)
		wfs_table_add(&t, &entries[id]->node);
	allocations_left = -1;
	check(&t, 1, entries);
	wfs_table_release(&t, free_entry);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_any_order),
		cmocka_unit_test(test_buckets_follow),
		cmocka_unit_test(test_without_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

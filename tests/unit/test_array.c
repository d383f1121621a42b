/* Arrays that grow: lib/array.h. The Makefile puts __wrap_reallocarray into lib/array.c's way. */
#include "lib/array.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct wide {
	char bytes[24];
};

static bool fails;
static size_t calls;

void *__real_reallocarray(void *p, size_t n, size_t size);
void *__wrap_reallocarray(void *p, size_t n, size_t size);

void *__wrap_reallocarray(void *p, size_t n, size_t size)
{
	calls++;
	if (fails) {
		errno = ENOMEM;
		return NULL;
	}
	return __real_reallocarray(p, n, size);
}

static void test_elements_stay(void **state)
{
	struct wide *list = NULL;
	size_t n = 0, room = 0;

	(void)state;
	calls = 0;
	for (; n < 1000; n++) {
		assert_int_equal(WFS_ARRAY_ROOM(list, n, room), 0);
		assert_true(room > n);
		memset(&list[n], (int)(n % 251), sizeof(list[n]));
	}
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < sizeof(list->bytes); k++)
			assert_int_equal((unsigned char)list[i].bytes[k], i % 251);
	assert_int_equal(room, 1024);
	assert_int_equal(calls, 7); /* 16, 32, ... 1024 */
	free(list);
}

/* Emptied and filled again, it is as long as it was. */
static void test_room_is_kept(void **state)
{
	uint64_t *list = NULL, *had;
	size_t room = 0;

	(void)state;
	for (size_t n = 0; n < 17; n++)
		assert_int_equal(WFS_ARRAY_ROOM(list, n, room), 0);
	had = list;
	calls = 0;
	for (size_t n = 0; n < 32; n++)
		assert_int_equal(WFS_ARRAY_ROOM(list, n, room), 0);
	assert_int_equal(calls, 0);
	assert_ptr_equal(list, had);
	assert_int_equal(room, 32);
	free(list);
}

/* Many at once: as many as are asked for, where that is more than twice the room. */
static void test_many(void **state)
{
	uint16_t *list = NULL;
	size_t room = 0;

	(void)state;
	assert_int_equal(WFS_ARRAY_ROOM_FOR(0, list, 0, room), 0);
	assert_null(list);
	assert_int_equal(WFS_ARRAY_ROOM_FOR(5, list, 0, room), 0);
	assert_int_equal(room, 16);
	assert_int_equal(WFS_ARRAY_ROOM_FOR(6, list, 10, room), 0);
	assert_int_equal(room, 16);
	list[15] = 15;
	assert_int_equal(WFS_ARRAY_ROOM_FOR(7, list, 10, room), 0);
	assert_int_equal(room, 32);
	assert_int_equal(WFS_ARRAY_ROOM_FOR(1000, list, 10, room), 0);
	assert_int_equal(room, 1010);
	memset(&list[16], 1, 994 * sizeof(*list));
	assert_int_equal(list[15], 15);
	free(list);
}

static void test_no_memory(void **state)
{
	char **list = NULL, **had;
	size_t room = 0;

	(void)state;
	fails = true;
	assert_int_equal(WFS_ARRAY_ROOM(list, 0, room), -ENOMEM);
	assert_null(list);
	assert_int_equal(room, 0);
	fails = false;
	assert_int_equal(WFS_ARRAY_ROOM(list, 0, room), 0);
	had = list;
	list[0] = list[15] = (char *)&room;
	fails = true;
	assert_int_equal(WFS_ARRAY_ROOM(list, 15, room), 0);
	assert_int_equal(WFS_ARRAY_ROOM(list, 16, room), -ENOMEM);
	fails = false;
	assert_ptr_equal(list, had);
	assert_int_equal(room, 16);
	assert_ptr_equal(list[0], &room);
	assert_ptr_equal(list[15], &room);
	free(list);
}

static void test_overflow(void **state)
{
	static const size_t cases[] = {
		SIZE_MAX,		    /* as many elements cannot be counted twice */
		SIZE_MAX / 2 + 1,	    /* twice that is 0 */
		SIZE_MAX / 24 / 2 + 1,	    /* their bytes cannot be counted: no less than was asked for */
		(size_t)1 << (8 * sizeof(size_t) - 4), /* 24 times its double is 0 */
	};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(cases); i++) {
		struct wide one, *list = &one;
		size_t room = cases[i];

		assert_int_equal(WFS_ARRAY_ROOM(list, room, room), -ENOMEM);
		assert_ptr_equal(list, &one);
		assert_int_equal(room, cases[i]);
		room = 1;
		assert_int_equal(WFS_ARRAY_ROOM_FOR(SIZE_MAX - i, list, 1 + i, room), -ENOMEM);
		assert_int_equal(WFS_ARRAY_ROOM_FOR(SIZE_MAX / 24 - i, list, 1 + i, room), -ENOMEM);
		assert_ptr_equal(list, &one);
		assert_int_equal(room, 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_elements_stay),
		cmocka_unit_test(test_room_is_kept),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_no_memory),
		cmocka_unit_test(test_overflow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

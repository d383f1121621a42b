/*
 * allocations.h - allocations that fail on demand, for unit programs of one thread.
 *
 * The linker puts these functions in the way of the program and of libweightfs (ALLOCATIONS in the
 * Makefile), not of the C library or others: a sanitizer or valgrind keeps its own below them. To be
 * included by one file of a program.
 */
#ifndef WFS_TEST_ALLOCATIONS_H
#define WFS_TEST_ALLOCATIONS_H

#include <stdbool.h>
#include <stddef.h>

static long allocations_left = -1; /* before all fail; -1: none does */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_reallocarray(void *p, size_t n, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_reallocarray(void *p, size_t n, size_t size);

static bool allocation_fails(void)
{
	if (allocations_left > 0)
		allocations_left--;
	else if (allocations_left == 0)
		return true;
	return false;
}

void *__wrap_malloc(size_t size)
{
	return allocation_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return allocation_fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return allocation_fails() ? NULL : __real_realloc(p, size);
}

void *__wrap_reallocarray(void *p, size_t n, size_t size)
{
	return allocation_fails() ? NULL : __real_reallocarray(p, n, size);
}

#endif

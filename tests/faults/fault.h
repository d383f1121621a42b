/*
 * fault.h - the n-th call of a kind fails.
 *
 * Linked into a program, fault.c stands before the C library's own functions, for
 * SQLite's shared library, too; allocations of lib/ are caught by the linker (--wrap, see
 * Makefile), SQLite's and jansson's by their own hooks (fault_hook_libraries, once and
 * first). As a library for LD_PRELOAD (build with FAULT_PRELOAD) it takes its plan
 * from the file that WEIGHTFS_FAULT_PLAN names: a struct fault_plan, mapped.
 */
#ifndef WFS_TESTS_FAULT_H
#define WFS_TESTS_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum fault_kind {
	FAULT_ALLOC = 1 << 0, /* malloc, calloc, realloc, strdup, asprintf …; SQLite's and jansson's */
	FAULT_WRITE = 1 << 1, /* write, pwrite, ftruncate, fallocate, copy_file_range */
	FAULT_READ = 1 << 2,  /* read, pread, directories */
	FAULT_SYNC = 1 << 3,  /* fsync, fdatasync */
	FAULT_NAME = 1 << 4,  /* open, mkdir, link, rename, unlink */
	FAULT_LOOK = 1 << 5,  /* stat, statfs, fcntl, flock, ioctl, utimensat */
	FAULT_MAP = 1 << 6,   /* mmap, mremap */
	FAULT_ALL = (1 << 7) - 1,
};

struct fault_plan {
	_Atomic uint32_t kinds; /* 0: nothing fails, and nothing is counted */
	uint32_t error;         /* errno */
	uint64_t n;             /* 1: the first call; 0: none, they are only counted */
	uint32_t forever;       /* and every one behind it */
	uint32_t loses;         /* a sync that fails loses what it was to write, as the kernel may */
	uint32_t halves;        /* of a write that fails half is written first, without an error */
	uint32_t unused;
	_Atomic uint64_t calls;
	_Atomic uint64_t hits;
};

void fault_hook_libraries(void);
void fault_arm(const struct fault_plan *plan);
/* Nothing fails from here on. Returns how many calls did. */
uint64_t fault_disarm(void);
/* For what the test itself does meanwhile. */
void fault_pause(void);
void fault_resume(void);
uint64_t fault_hits(void);
/* Since the plan was made: calls of these kinds, as far as they are in the plan. */
uint64_t fault_calls_of(uint32_t kinds);

/* A call while they are only counted: its kind, and which functions of this program led to it, the last few, as one number. */
struct fault_place {
	uint32_t kind;
	uint64_t place;
};

#define FAULT_MOST_PLACES (1u << 18)

struct fault_places {
	uint64_t n; /* one thread */
	struct fault_place list[FAULT_MOST_PLACES];
};

/* Until fault_disarm the places are noted there, in order, as many as there is room for. */
void fault_note_places(struct fault_places *places);

/* Allocations of lib/ that were not freed yet. */
long fault_live_allocations(void);

#endif

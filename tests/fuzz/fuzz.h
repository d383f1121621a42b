/*
 * fuzz.h - functions that take any bytes. Each checks more than that nothing crashes: what
 * was read and written again is the same, a verdict that was given stays.
 *
 * tests/fuzz/libfuzzer.c runs one of them under libFuzzer (make fuzz), tests/unit/test_fuzz.c
 * all of them over tests/fuzz/regress/ and over changes of the corpus (make test).
 */
#ifndef WFS_TESTS_FUZZ_H
#define WFS_TESTS_FUZZ_H

#include <stdio.h>
#include <stdlib.h>

#include "lib/base.h"

void wfs_fuzz_safetensors(const uint8_t *data, size_t size);
void wfs_fuzz_npy(const uint8_t *data, size_t size);
void wfs_fuzz_index(const uint8_t *data, size_t size);
void wfs_fuzz_json(const uint8_t *data, size_t size);
void wfs_fuzz_names(const uint8_t *data, size_t size);
void wfs_fuzz_store(const uint8_t *data, size_t size);

/* In every build, not only where assert() is. */
#define WFS_FUZZ_CHECK(condition)                                                                  \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#endif

/* libfuzzer.c - WFS_FUZZ_TARGET, one function of tests/fuzz/fuzz.h, under libFuzzer. */
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	WFS_FUZZ_TARGET(data, size);
	return 0;
}

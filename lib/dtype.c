#include "lib/dtype.h"

#include <string.h>

struct info {
	const char *name;
	uint8_t name_len;
	uint8_t bits;
};

#define DTYPE(name, bits) [WFS_DTYPE_##name] = { #name, sizeof(#name) - 1, bits }

static const struct info infos[WFS_DTYPE_COUNT] = {
	DTYPE(BOOL, 8),
	DTYPE(F4, 4),
	DTYPE(F6_E2M3, 6),
	DTYPE(F6_E3M2, 6),
	DTYPE(U8, 8),
	DTYPE(I8, 8),
	DTYPE(F8_E5M2, 8),
	DTYPE(F8_E4M3, 8),
	DTYPE(F8_E8M0, 8),
	DTYPE(F8_E4M3FNUZ, 8),
	DTYPE(F8_E5M2FNUZ, 8),
	DTYPE(I16, 16),
	DTYPE(U16, 16),
	DTYPE(F16, 16),
	DTYPE(BF16, 16),
	DTYPE(I32, 32),
	DTYPE(U32, 32),
	DTYPE(F32, 32),
	DTYPE(C64, 64),
	DTYPE(F64, 64),
	DTYPE(I64, 64),
	DTYPE(U64, 64),
};

const char *wfs_dtype_name(enum wfs_dtype dtype)
{
	return infos[dtype].name;
}

unsigned wfs_dtype_bits(enum wfs_dtype dtype)
{
	return infos[dtype].bits;
}

int wfs_dtype_find(const char *name, size_t len, enum wfs_dtype *ret)
{
	for (unsigned i = 0; i < WFS_DTYPE_COUNT; i++) {
		if (infos[i].name_len == len && memcmp(infos[i].name, name, len) == 0) {
			*ret = (enum wfs_dtype)i;
			return 1;
		}
	}
	return 0;
}

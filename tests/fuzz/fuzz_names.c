/* Sizes as text and names of shards: what was read and written again is the same. */
#include <string.h>

#include "lib/shard_name.h"
#include "lib/size_text.h"
#include "tests/fuzz/fuzz.h"

static void check_size(const char *text)
{
	uint64_t bytes = UINT64_MAX, again = 0;
	char plain[32];

	if (!wfs_size_parse(text, &bytes)) {
		WFS_FUZZ_CHECK(bytes == UINT64_MAX);
		return;
	}
	WFS_FUZZ_CHECK(bytes <= INT64_MAX);
	snprintf(plain, sizeof(plain), "%llu", (unsigned long long)bytes);
	WFS_FUZZ_CHECK(wfs_size_parse(plain, &again) && again == bytes);
}

static int build(const struct wfs_shard_name *n, char *buf, size_t size)
{
	const char *variant = n->has_variant ? n->variant : NULL;

	return n->is_index ? wfs_shard_index_name(buf, size, n->base, variant)
			   : wfs_shard_name(buf, size, n->base, variant, n->number, n->count);
}

static void check_name(const char *text)
{
	struct wfs_shard_name n, again;
	char name[WFS_SHARD_NAME_SIZE], small[8];

	if (!wfs_shard_name_parse(text, &n))
		return;
	WFS_FUZZ_CHECK(n.base[0] && !strchr(n.base, '/') && !strchr(n.variant, '/') && n.number <= n.count);
	WFS_FUZZ_CHECK(build(&n, name, sizeof(name)) == 0);
	WFS_FUZZ_CHECK(strlen(name) <= strlen(text));
	WFS_FUZZ_CHECK(wfs_shard_name_parse(name, &again));
	WFS_FUZZ_CHECK(strcmp(n.base, again.base) == 0 && strcmp(n.variant, again.variant) == 0 &&
		       n.has_variant == again.has_variant && n.is_index == again.is_index &&
		       n.number == again.number && n.count == again.count);
	WFS_FUZZ_CHECK(build(&n, small, sizeof(small)) != 0);
}

void wfs_fuzz_names(const uint8_t *data, size_t size)
{
	char *text = strndup((const char *)data, size);

	WFS_FUZZ_CHECK(text);
	check_size(text);
	check_name(text);
	free(text);
}

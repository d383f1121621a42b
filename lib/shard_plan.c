#include "lib/shard_plan.h"

#include <errno.h>

/* Instead of a number: in the open shard, which has none yet. */
#define IN_OPEN UINT32_MAX
/* Instead of a number: where the first tensor of its storage is. */
#define FOLLOWS (UINT32_MAX - 1)

struct member {
	uint64_t storage;
	uint32_t tensor;
};

struct plan {
	uint32_t *shard; /* of each tensor */
	uint32_t shards; /* closed so far */
	uint64_t open;	 /* bytes in the open shard, at most max */
	size_t from;	 /* no tensor before this one is in the open shard */
	bool is_open;
};

/* ---- tensors that share a storage ---- */

static int compare_members(const void *left, const void *right)
{
	const struct member *a = left, *b = right;

	if (a->storage != b->storage)
		return a->storage < b->storage ? -1 : 1;
	return a->tensor < b->tensor ? -1 : a->tensor > b->tensor;
}

/* Tensors of one storage stand together, the first of them first. */
static int collect_members(const uint64_t *storage, size_t n, struct member **ret, size_t *ret_n)
{
	struct member *members;
	size_t count = 0;

	for (size_t i = 0; storage && i < n; i++)
		count += storage[i] != 0;
	*ret = NULL;
	*ret_n = count;
	if (!count)
		return 0;
	members = reallocarray(NULL, count, sizeof(*members));
	if (!members)
		return -ENOMEM;
	for (size_t i = 0, at = 0; i < n; i++)
		if (storage[i])
			members[at++] = (struct member){storage[i], (uint32_t)i};
	qsort(members, count, sizeof(*members), compare_members);
	*ret = members;
	return 0;
}

static void mark_followers(uint32_t *shard, const struct member *members, size_t n)
{
	for (size_t i = 1; i < n; i++)
		if (members[i].storage == members[i - 1].storage)
			shard[members[i].tensor] = FOLLOWS;
}

static void place_followers(uint32_t *shard, const struct member *members, size_t n)
{
	uint32_t first = 0;

	for (size_t i = 0; i < n; i++) {
		if (i == 0 || members[i].storage != members[i - 1].storage)
			first = members[i].tensor;
		shard[members[i].tensor] = shard[first];
	}
}

/* ---- the plan ---- */

static void close_shard(struct plan *p, size_t end)
{
	for (size_t i = p->from; i < end; i++)
		if (p->shard[i] == IN_OPEN)
			p->shard[i] = p->shards;
	p->shards++;
	p->from = end;
	p->open = 0;
}

static void place(struct plan *p, size_t i, uint64_t size, uint64_t max)
{
	if (size > max) {
		p->shard[i] = p->shards++;
		return;
	}
	if (size > max - p->open)
		close_shard(p, i);
	p->open += size;
	p->is_open = true;
}

int wfs_shard_plan(const uint64_t *sizes, const uint64_t *storage, size_t n, uint64_t max,
	uint32_t *ret_shard, uint32_t *ret_shards)
{
	WFS_AUTO_FREE struct member *members = NULL;
	struct plan p = {.shard = ret_shard};
	size_t n_members;

	if (n > WFS_SHARD_PLAN_MAX)
		return -EOVERFLOW;
	if (collect_members(storage, n, &members, &n_members) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		ret_shard[i] = IN_OPEN;
	mark_followers(ret_shard, members, n_members);
	for (size_t i = 0; i < n; i++)
		if (ret_shard[i] != FOLLOWS)
			place(&p, i, sizes[i], max);
	if (p.is_open)
		close_shard(&p, n);
	place_followers(ret_shard, members, n_members);
	*ret_shards = p.shards;
	return 0;
}
